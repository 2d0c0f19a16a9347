package pinfold

import (
	"encoding/json"
	"fmt"
	"strings"
)

// A Report says what pinfold knows about a command that is over. Raw has all of it: docs/report.schema.json.
type Report struct {
	// Why the command ended: exited, deadline, stopped, killed, oom, spawn_failed, …
	Reason string `json:"reason"`
	// The exit code as shells report it: 128+N for a signal, 124 for a deadline.
	ExitCode int `json:"exit_code"`
	// Why it could not be started.
	Error string `json:"error"`
	Main  *struct {
		Exited    *int `json:"exited"`
		Signalled *struct {
			Signal     int    `json:"signal"`
			Name       string `json:"name"`
			CoreDumped bool   `json:"core_dumped"`
		} `json:"signalled"`
	} `json:"main"`
	// The processes that were left when the main process had exited.
	Leftovers ProcessList     `json:"leftovers"`
	Raw       json.RawMessage `json:"-"`
}

// A ProcessList counts processes, and names some of them.
type ProcessList struct {
	Count     int `json:"count"`
	Processes []struct {
		PID         int    `json:"pid"`
		CommandLine string `json:"command_line"`
	} `json:"processes"`
}

// A ProcessState says how a command ended, as os.ProcessState does, and has pinfold's report about it.
type ProcessState struct {
	Report Report
	pid    int
}

func newState(raw json.RawMessage, pid int) (*ProcessState, error) {
	state := &ProcessState{pid: pid}
	if err := json.Unmarshal(raw, &state.Report); err != nil {
		return nil, fmt.Errorf("pinfold: its report cannot be read: %w", err)
	}
	state.Report.Raw = raw
	return state, nil
}

// ExitCode returns the exit code of the main process, or -1 if a signal ended it.
func (s *ProcessState) ExitCode() int {
	if s == nil || s.Report.Main == nil || s.Report.Main.Exited == nil {
		return -1
	}
	return *s.Report.Main.Exited
}

// Exited reports whether the main process has exited by itself.
func (s *ProcessState) Exited() bool { return s.ExitCode() >= 0 }

// Pid returns the process id that the main process had.
func (s *ProcessState) Pid() int { return s.pid }

// Success reports whether the command ended by itself, with exit code 0.
func (s *ProcessState) Success() bool { return s != nil && s.Report.ExitCode == 0 && s.ExitCode() == 0 }

func (s *ProcessState) String() string {
	if s == nil {
		return "<nil>"
	}
	var text strings.Builder
	switch main := s.Report.Main; {
	case main == nil:
		text.WriteString(s.Report.Reason)
	case main.Signalled != nil:
		fmt.Fprintf(&text, "signal: %s", main.Signalled.Name)
		if main.Signalled.CoreDumped {
			text.WriteString(" (core dumped)")
		}
	default:
		fmt.Fprintf(&text, "exit status %d", s.ExitCode())
	}
	if s.Report.Reason == "deadline" {
		text.WriteString(" (timeout)")
	}
	return text.String()
}

// An ExitError reports a command that did not succeed, as exec.ExitError does.
type ExitError struct {
	*ProcessState
	// A part of the standard error, where Output ran the command and Cmd.Stderr was nil.
	Stderr []byte
}

func (e *ExitError) Error() string { return e.ProcessState.String() }
