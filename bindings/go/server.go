package pinfold

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sort"
	"strings"
	"sync"
)

// The version of the protocol (docs/serve.md).
const protocol = 1

var neededCapabilities = []string{
	"cancel_kill", "close", "credit", "error_code", "job_settings", "output", "pty", "signal_to", "stdin",
}

// ErrLost says that pinfold itself has ended, and with it every command.
var ErrLost = errors.New("pinfold serve is not available")

// An event of pinfold.
type event struct {
	Event        string          `json:"event"`
	Request      uint64          `json:"request"`
	ID           any             `json:"id"`
	Protocol     int             `json:"protocol"`
	Version      string          `json:"version"`
	Capabilities []string        `json:"capabilities"`
	What         what            `json:"what"`
	Stream       string          `json:"stream"`
	Text         *string         `json:"text"`
	Base64       []byte          `json:"base64"`
	Code         string          `json:"code"`
	Message      string          `json:"message"`
	Cancelled    bool            `json:"cancelled"`
	Report       json.RawMessage `json:"report"`
}

// What has happened to a job.
type what struct {
	Event string `json:"event"`
	PID   int    `json:"pid"`
}

// A request, except for its id.
type request map[string]any

// A job, as the server sees it. None of these calls blocks.
type job interface {
	receive(event)
	lose(error)
}

// A server is one process of pinfold serve --stdio, which all commands of this program share. It runs until this program
// ends. Its standard error is that of this program: pinfold reports there what it cannot report in an event.
type server struct {
	mu      sync.Mutex
	stdin   io.WriteCloser
	lines   uint64
	lastID  uint64
	answers map[uint64]func(event)
	jobs    map[string]job
	lost    error
}

var servers struct {
	sync.Mutex
	running map[string]*server
}

// Each message is given to this function: tests check it against the schema.
var onMessage func(line []byte)

// sharedServer returns the server for jobs with these limits, and starts it if it does not run. When pinfold starts, it
// enables the cgroup controllers that the limits need. So there is one server for each set of them.
func sharedServer(limits map[string]any) (*server, error) {
	program := os.Getenv("PINFOLD")
	if program == "" {
		program = "pinfold"
	}
	controllers := controllersOf(limits)
	key := program + "\x00" + controllers
	servers.Lock()
	defer servers.Unlock()
	if known := servers.running[key]; known != nil && known.failure() == nil {
		return known, nil
	}
	started, err := startServer(program, controllers)
	if err != nil {
		return nil, err
	}
	if servers.running == nil {
		servers.running = map[string]*server{}
	}
	servers.running[key] = started
	return started, nil
}

func controllersOf(limits map[string]any) string {
	controllers := map[string]bool{}
	for name := range limits {
		switch name {
		case "memory", "memory_high", "swap", "oom_group":
			controllers["memory"] = true
		case "cpus", "cpu_weight":
			controllers["cpu"] = true
		case "io_weight", "io_max":
			controllers["io"] = true
		case "pids", "cpuset":
			controllers[name] = true
		}
	}
	var names []string
	for name := range controllers {
		names = append(names, name)
	}
	sort.Strings(names)
	return strings.Join(names, ",")
}

func startServer(program, controllers string) (*server, error) {
	words := []string{"serve", "--stdio", "-j", "max"}
	if controllers != "" {
		words = append(words, "--controllers", controllers)
	}
	command := exec.Command(program, words...)
	command.Stderr = os.Stderr
	stdin, err := command.StdinPipe()
	if err != nil {
		return nil, err
	}
	stdout, err := command.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := command.Start(); err != nil {
		return nil, fmt.Errorf("%w: %v", ErrLost, err)
	}
	s := &server{stdin: stdin, answers: map[uint64]func(event){}, jobs: map[string]job{}}
	events := bufio.NewReaderSize(stdout, 64*1024)
	if err := s.greet(events); err != nil {
		stdin.Close()
		io.Copy(io.Discard, events)
		if ended := command.Wait(); ended != nil {
			err = ended
		}
		return nil, fmt.Errorf("%w: %v", ErrLost, err)
	}
	go func() {
		err := s.read(events)
		if ended := command.Wait(); ended != nil {
			err = ended
		}
		s.lose(fmt.Errorf("%w: %v", ErrLost, err))
	}()
	return s, nil
}

func next(events *bufio.Reader) (e event, err error) {
	line, err := events.ReadBytes('\n')
	if err != nil {
		return e, errors.New("it has ended")
	}
	if onMessage != nil {
		onMessage(line)
	}
	return e, json.Unmarshal(line, &e)
}

// greet reads the first event, and checks that pinfold has what this package needs.
func (s *server) greet(events *bufio.Reader) error {
	hello, err := next(events)
	if err != nil {
		return err
	}
	known := map[string]bool{}
	for _, name := range hello.Capabilities {
		known[name] = true
	}
	for _, name := range neededCapabilities {
		if !known[name] {
			return fmt.Errorf("pinfold %s is too old for this package: it lacks %s", hello.Version, name)
		}
	}
	if hello.Protocol != protocol {
		return fmt.Errorf("pinfold %s has protocol %d, and this package %d", hello.Version, hello.Protocol, protocol)
	}
	return nil
}

func (s *server) read(events *bufio.Reader) error {
	for {
		e, err := next(events)
		if err != nil {
			return err
		}
		id, _ := e.ID.(string)
		s.mu.Lock()
		answer := s.answers[e.Request]
		delete(s.answers, e.Request)
		job := s.jobs[id]
		s.mu.Unlock()
		switch {
		case answer != nil:
			answer(e)
		case job != nil && e.Event != "error":
			job.receive(e)
		}
		// An error for a request that expects no answer, such as a signal to a job that is over, is ignored.
	}
}

// lose ends all jobs of a server that has ended.
func (s *server) lose(err error) {
	s.mu.Lock()
	jobs, answers := s.jobs, s.answers
	s.lost, s.jobs, s.answers = err, nil, nil
	s.mu.Unlock()
	for _, answer := range answers {
		answer(event{Event: "error", Code: "lost", Message: err.Error()})
	}
	for _, job := range jobs {
		job.lose(err)
	}
}

func (s *server) failure() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lost
}

// submit starts a job, and returns its id. The events of the job follow.
func (s *server) submit(r request, j job) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lost != nil {
		return "", s.lost
	}
	s.lastID++
	id := fmt.Sprint(s.lastID)
	r["op"], r["id"] = "submit", id
	s.jobs[id] = j
	err := s.write(r, func(answer event) {
		s.mu.Lock()
		delete(s.jobs, id)
		if answer.Code == "stopping" {
			// A signal has stopped this server. The next command starts another server.
			s.lost = fmt.Errorf("%w: %s", ErrLost, answer.Message)
		}
		s.mu.Unlock()
		if answer.Code != "lost" {
			j.receive(answer)
		}
	})
	if err != nil {
		delete(s.jobs, id)
	}
	return id, err
}

// send sends a request for a job. answer, if it is not nil, receives its answer.
func (s *server) send(id string, r request, answer func(event)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.answers == nil {
		return s.lost
	}
	r["id"] = id
	return s.write(r, answer)
}

func (s *server) write(r request, answer func(event)) error {
	line, err := json.Marshal(r)
	if err != nil {
		return err
	}
	if onMessage != nil {
		onMessage(line)
	}
	s.lines++
	if answer != nil {
		s.answers[s.lines] = answer
	}
	if _, err := s.stdin.Write(append(line, '\n')); err != nil {
		delete(s.answers, s.lines)
		return fmt.Errorf("%w: %v", ErrLost, err)
	}
	return nil
}
