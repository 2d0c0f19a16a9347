package pinfold

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
)

// An output that is copied to a writer.
type copied struct {
	from *output
	to   io.Writer
}

// request returns the submit request.
func (c *Cmd) request() (request, error) {
	dir := c.Dir
	if dir == "" {
		var err error
		if dir, err = os.Getwd(); err != nil {
			return nil, err
		}
	}
	env := map[string]string{}
	for _, variable := range c.Environ() {
		if key, value, ok := strings.Cut(variable, "="); ok && key != "" {
			env[key] = value
		}
	}
	command := append([]string{c.Path}, c.Args...)
	if len(c.Args) > 0 {
		command = append([]string{c.Path}, c.Args[1:]...)
	}
	job := map[string]any{"command": command, "cwd": dir, "clear_env": true, "env": env}
	if c.Name != "" {
		job["name"] = c.Name
	}
	if c.Timeout > 0 {
		job["timeout"] = c.Timeout.Seconds()
	}
	if c.WaitDelay > 0 {
		job["grace"] = c.WaitDelay.Seconds()
	}
	if c.Limits != nil {
		job["limits"] = c.Limits
	}
	if c.Sandbox != nil {
		job["sandbox"] = c.Sandbox
	}
	if sameWriter(c.Stdout, c.Stderr) {
		job["stderr"] = "merged"
	}
	mode := func(read bool) string {
		if read {
			return "data"
		}
		return "none"
	}
	r := request{
		"job": job, "credit": credit,
		"output": map[string]string{
			"stdout": mode(c.Pty != nil || c.Stdout != nil || c.stdout != nil),
			"stderr": mode(c.Stderr != nil || c.stderr != nil),
		},
	}
	if c.Stdin != nil || c.stdin != nil {
		r["stdin"] = "stream"
	}
	if c.Pty != nil {
		r["pty"] = c.Pty
	}
	return r, nil
}

// outputs makes the streams, before the first event can arrive.
func (c *Cmd) outputs() (outputs []copied) {
	stdout, stderr := c.Stdout, c.Stderr
	if c.Pty != nil && stdout == nil && c.stdout == nil {
		stdout = io.Discard
	}
	if sameWriter(c.Stdout, c.Stderr) {
		stderr = nil
	}
	for _, stream := range []struct {
		output **output
		to     io.Writer
	}{{&c.stdout, stdout}, {&c.stderr, stderr}} {
		if stream.to != nil {
			*stream.output = newOutput()
			outputs = append(outputs, copied{*stream.output, stream.to})
		}
	}
	return outputs
}

// connect lets the streams send requests, and starts to copy.
func (c *Cmd) connect(outputs []copied) {
	for name, stream := range map[string]*output{"stdout": c.stdout, "stderr": c.stderr} {
		if stream == nil {
			continue
		}
		name := name
		stream.mu.Lock()
		stream.grant = func(bytes int) { c.send(request{"op": "credit", "stream": name, "bytes": bytes}, nil) }
		stream.stop = func() { c.send(request{"op": "close", "stream": name}, nil) }
		stream.mu.Unlock()
	}
	for _, stream := range outputs {
		stream := stream
		c.copying.Add(1)
		go func() {
			defer c.copying.Done()
			if _, err := io.Copy(stream.to, stream.from); err != nil {
				stream.from.Close()
				c.copyErrors <- err
			}
		}()
	}
	if c.stdin != nil {
		c.stdin.start(c.send)
	}
	if c.Stdin != nil {
		in := &input{}
		in.start(c.send)
		// Wait does not wait for this copy: after the end of the command, no process reads the input.
		go func() {
			io.Copy(in, c.Stdin)
			in.Close()
		}()
	}
}

func (c *Cmd) send(r request, answer func(event)) error {
	return c.server.send(c.Process.id, r, answer)
}

// receive gets each event of the job.
func (c *Cmd) receive(e event) {
	switch e.Event {
	case "job":
		if e.What.Event == "spawned" {
			c.Process.Pid = e.What.PID
			c.spawnedOnce.Do(func() { close(c.spawned) })
		}
	case "data", "eof":
		stream := c.stdout
		if e.Stream == "stderr" {
			stream = c.stderr
		}
		switch {
		case stream == nil:
		case e.Event == "eof":
			stream.end(io.EOF)
		case e.Text != nil:
			stream.add([]byte(*e.Text))
		default:
			stream.add(e.Base64)
		}
	case "done":
		state, err := newState(e.Report, c.Process.Pid)
		if err == nil && state.Report.Reason == "spawn_failed" {
			err = c.spawnError(state.Report)
		}
		c.ProcessState = state
		c.finish(err)
	case "error":
		c.finish(fmt.Errorf("pinfold: %s", e.Message))
	}
}

// spawnError returns the error of a command that could not be started, as os/exec does.
func (c *Cmd) spawnError(report Report) error {
	switch report.ExitCode {
	case 127:
		return &exec.Error{Name: c.Path, Err: fmt.Errorf("%s: %w", report.Error, os.ErrNotExist)}
	case 126:
		return &exec.Error{Name: c.Path, Err: fmt.Errorf("%s: %w", report.Error, os.ErrPermission)}
	}
	return fmt.Errorf("pinfold: %s", report.Error)
}

// lose gets the error when pinfold itself has ended.
func (c *Cmd) lose(err error) { c.finish(err) }

func (c *Cmd) finish(err error) {
	c.failure = err
	for _, stream := range []*output{c.stdout, c.stderr} {
		if stream != nil {
			stream.end(io.EOF)
		}
	}
	c.spawnedOnce.Do(func() { close(c.spawned) })
	close(c.done)
}

func (p *Process) isDone() bool {
	select {
	case <-p.cmd.done:
		return true
	default:
		return false
	}
}

// Signal sends a signal to the main process. os.Kill kills every process of the command.
func (p *Process) Signal(signal os.Signal) error {
	number, ok := signal.(syscall.Signal)
	switch {
	case p.isDone():
		return os.ErrProcessDone
	case !ok:
		return fmt.Errorf("pinfold: signal %v is not supported", signal)
	case number == syscall.SIGKILL:
		return p.Kill()
	}
	return p.cmd.send(request{"op": "signal", "signal": strconv.Itoa(int(number))}, nil)
}

// Kill kills every process of the command at once. It does not wait for their end.
func (p *Process) Kill() error { return p.end(request{"op": "cancel", "kill": true}) }

// Stop sends SIGTERM to every process of the command, and SIGKILL after Cmd.WaitDelay. A second call kills at once.
func (p *Process) Stop() error { return p.end(request{"op": "cancel"}) }

func (p *Process) end(r request) error {
	if p.isDone() {
		return os.ErrProcessDone
	}
	return p.cmd.send(r, nil)
}

// Resize changes the size of the terminal (Cmd.Pty).
func (p *Process) Resize(size Size) error {
	return p.cmd.send(request{"op": "resize", "rows": size.Rows, "columns": size.Columns}, nil)
}
