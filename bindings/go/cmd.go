// Package pinfold runs commands as os/exec does, and no process that a command started can outlive the command: when Wait
// returns, every process of the command has ended, whatever process group or session it is in. When this program ends, in any way,
// all commands end with it.
//
// It needs the command pinfold in PATH, or its path in the environment variable PINFOLD. All commands of a program share
// one process of pinfold serve, which the first command starts.
package pinfold

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"reflect"
	"strings"
	"sync"
	"time"
)

// The errors for calls in the wrong order. Their texts are like those of os/exec.
var (
	errNotStarted     = errors.New("pinfold: not started")
	errAlreadyStarted = errors.New("pinfold: already started")
	errWaitTwice      = errors.New("pinfold: Wait was already called")
)

// Size is the size of a terminal in characters.
type Size struct {
	Rows    uint16 `json:"rows"`
	Columns uint16 `json:"columns"`
}

// Cmd is a command, like exec.Cmd. Set its fields before Start.
type Cmd struct {
	Path string
	Args []string
	// The environment; nil is that of this program. The last value of a variable counts.
	Env []string
	// The working directory; "" is that of this program.
	Dir string
	// The standard input; nil is an empty one.
	Stdin io.Reader
	// The standard output and error; nil is the null device. If both are the same, they are one stream, in the order in
	// which the command writes.
	Stdout, Stderr io.Writer

	// Called when the context of CommandContext is done. The default sends SIGTERM to every process of the command.
	Cancel func() error
	// How long after a stop pinfold kills every process of the command. 0 means 10 s.
	WaitDelay time.Duration
	// Stops the command after this time. 0 is no limit.
	Timeout time.Duration

	// The name of the command in reports and in pinfold ps.
	Name string
	// The limits and the sandbox, as docs/serve.md describes them: map[string]any{"memory": "512M", "pids": 100}.
	Limits, Sandbox map[string]any
	// Gives the command a terminal of this size as its standard streams. Its whole output goes to Stdout.
	Pty *Size

	// Set by Start and by Wait.
	Process      *Process
	ProcessState *ProcessState

	ctx            context.Context
	lookPathErr    error
	server         *server
	stdin          *input
	stdout, stderr *output
	copying        sync.WaitGroup
	copyErrors     chan error
	spawned, done  chan struct{}
	spawnedOnce    sync.Once
	failure        error
	waited         bool
}

// Process is the main process of a command that was started.
type Process struct {
	Pid int
	cmd *Cmd
	id  string
}

// Command returns a command, like exec.Command.
func Command(name string, arg ...string) *Cmd {
	cmd := &Cmd{Path: name, Args: append([]string{name}, arg...)}
	if !strings.Contains(name, "/") {
		path, err := exec.LookPath(name)
		if path != "" {
			cmd.Path = path
		}
		cmd.lookPathErr = err
	}
	return cmd
}

// CommandContext returns a command that is stopped when the context is done (see Cmd.Cancel).
func CommandContext(ctx context.Context, name string, arg ...string) *Cmd {
	if ctx == nil {
		panic("nil Context")
	}
	cmd := Command(name, arg...)
	cmd.ctx = ctx
	cmd.Cancel = func() error { return cmd.Process.Stop() }
	return cmd
}

// String returns the command for people to read.
func (c *Cmd) String() string {
	if c.lookPathErr != nil || len(c.Args) == 0 {
		return strings.Join(c.Args, " ")
	}
	return strings.Join(append([]string{c.Path}, c.Args[1:]...), " ")
}

// StdinPipe returns a pipe to the standard input. Close it to end the input.
func (c *Cmd) StdinPipe() (io.WriteCloser, error) {
	if c.Stdin != nil || c.stdin != nil {
		return nil, errors.New("pinfold: Stdin already set")
	}
	if c.Process != nil {
		return nil, errors.New("pinfold: StdinPipe after process started")
	}
	c.stdin = &input{}
	return c.stdin, nil
}

// StdoutPipe returns a pipe from the standard output. If the program does not read it, the command waits when its pipe is full.
// Read it to its end before Wait, which closes it.
func (c *Cmd) StdoutPipe() (io.ReadCloser, error) {
	return c.pipe(&c.stdout, c.Stdout != nil, "Stdout")
}

// StderrPipe does the same for the standard error.
func (c *Cmd) StderrPipe() (io.ReadCloser, error) {
	return c.pipe(&c.stderr, c.Stderr != nil, "Stderr")
}

func (c *Cmd) pipe(stream **output, set bool, name string) (io.ReadCloser, error) {
	if set || *stream != nil {
		return nil, fmt.Errorf("pinfold: %s already set", name)
	}
	if c.Process != nil {
		return nil, fmt.Errorf("pinfold: %sPipe after process started", name)
	}
	*stream = newOutput()
	return *stream, nil
}

// Start starts the command, and returns when it runs.
func (c *Cmd) Start() error {
	switch {
	case c.lookPathErr != nil:
		return c.lookPathErr
	case c.Process != nil:
		return errAlreadyStarted
	case c.Path == "":
		return errors.New("pinfold: no command")
	case c.ctx != nil && c.ctx.Err() != nil:
		return c.ctx.Err()
	}
	request, err := c.request()
	if err != nil {
		return err
	}
	if c.server, err = sharedServer(c.Limits); err != nil {
		return err
	}
	c.spawned, c.done, c.copyErrors = make(chan struct{}), make(chan struct{}), make(chan error, 3)
	outputs := c.outputs()
	c.Process = &Process{cmd: c}
	id, err := c.server.submit(request, c)
	if err != nil {
		// The command was not started, so Wait has nothing to wait for.
		c.Process = nil
		return err
	}
	c.Process.id = id
	c.connect(outputs)
	<-c.spawned
	if c.failure != nil {
		return c.failure
	}
	if c.ctx != nil {
		go c.watchContext()
	}
	return nil
}

func (c *Cmd) watchContext() {
	select {
	case <-c.ctx.Done():
		if c.Cancel != nil {
			c.Cancel()
		}
	case <-c.done:
	}
}

// Wait waits until no process of the command is left, and until its output has been copied.
func (c *Cmd) Wait() error {
	if c.Process == nil {
		return errNotStarted
	}
	if c.waited {
		return errWaitTwice
	}
	c.waited = true
	<-c.done
	c.copying.Wait()
	for _, stream := range []*output{c.stdout, c.stderr} {
		if stream != nil {
			stream.Close()
		}
	}
	if c.failure != nil {
		return c.failure
	}
	if c.ctx != nil && c.ctx.Err() != nil && !c.ProcessState.Success() {
		return c.ctx.Err()
	}
	if !c.ProcessState.Success() {
		return &ExitError{ProcessState: c.ProcessState}
	}
	select {
	case err := <-c.copyErrors:
		return err
	default:
		return nil
	}
}

// Run starts the command and waits for it.
func (c *Cmd) Run() error {
	if err := c.Start(); err != nil {
		return err
	}
	return c.Wait()
}

// Output runs the command and returns its standard output. If Stderr is nil, an ExitError has the standard error.
func (c *Cmd) Output() ([]byte, error) {
	if c.Stdout != nil {
		return nil, errors.New("pinfold: Stdout already set")
	}
	var stdout, stderr bytes.Buffer
	c.Stdout = &stdout
	captures := c.Stderr == nil && c.stderr == nil
	if captures {
		c.Stderr = &stderr
	}
	err := c.Run()
	var exit *ExitError
	if captures && errors.As(err, &exit) {
		exit.Stderr = stderr.Bytes()
	}
	return stdout.Bytes(), err
}

// CombinedOutput runs the command and returns its standard output and standard error, in the order in which the command wrote
// them.
func (c *Cmd) CombinedOutput() ([]byte, error) {
	if c.Stdout != nil {
		return nil, errors.New("pinfold: Stdout already set")
	}
	if c.Stderr != nil {
		return nil, errors.New("pinfold: Stderr already set")
	}
	var both bytes.Buffer
	c.Stdout, c.Stderr = &both, &both
	err := c.Run()
	return both.Bytes(), err
}

// Environ returns the environment of the command.
func (c *Cmd) Environ() []string {
	if c.Env == nil {
		return os.Environ()
	}
	return append([]string(nil), c.Env...)
}

func sameWriter(a, b io.Writer) bool {
	defer func() { _ = recover() }() // Two values of a type that cannot be compared.
	return a != nil && reflect.TypeOf(a) == reflect.TypeOf(b) && a == b
}
