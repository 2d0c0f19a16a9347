package pinfold

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

func TestOutput(t *testing.T) {
	NeedPinfold(t)
	out, err := Command("sh", "-c", "echo out; echo err >&2").Output()
	if err != nil || string(out) != "out\n" {
		t.Errorf("%q, %v", out, err)
	}
	_, err = Command("sh", "-c", "echo why >&2; exit 3").Output()
	var exit *ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 3 || string(exit.Stderr) != "why\n" || err.Error() != "exit status 3" {
		t.Errorf("%v", err)
	}
	out, err = Command("sh", "-c", "echo 1; echo 2 >&2; echo 3").CombinedOutput()
	if err != nil || string(out) != "1\n2\n3\n" {
		t.Errorf("%q, %v", out, err)
	}
}

func TestEveryByteArrives(t *testing.T) {
	NeedPinfold(t)
	all := make([]byte, 3_000_000)
	for i := range all {
		all[i] = byte(i * i >> 7)
	}
	cmd := Command("cat")
	cmd.Stdin = bytes.NewReader(all)
	out, err := cmd.Output()
	if err != nil || !bytes.Equal(out, all) {
		t.Errorf("%d of %d bytes, %v", len(out), len(all), err)
	}
}

func TestPipes(t *testing.T) {
	NeedPinfold(t)
	cmd := Command("cat")
	stdin, err1 := cmd.StdinPipe()
	stdout, err2 := cmd.StdoutPipe()
	if err := cmd.Start(); err != nil || err1 != nil || err2 != nil {
		t.Fatal(err)
	}
	lines := bufio.NewReader(stdout)
	for _, word := range []string{"one\n", "zwei ä\n", "\xff\x00\n"} {
		if _, err := io.WriteString(stdin, word); err != nil {
			t.Fatal(err)
		}
		if line, err := lines.ReadString('\n'); line != word {
			t.Fatalf("%q %v", line, err)
		}
	}
	stdin.Close()
	if rest, err := io.ReadAll(lines); len(rest) != 0 || err != nil {
		t.Errorf("%q %v", rest, err)
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}

// A pipe that is not read makes only its own command wait; closing it ends the command.
func TestAPipeThatIsNotRead(t *testing.T) {
	NeedPinfold(t)
	slow := Command("sh", "-c", "while :; do echo 0123456789; done")
	stdout, _ := slow.StdoutPipe()
	if err := slow.Start(); err != nil {
		t.Fatal(err)
	}
	for i := 0; i < 20; i++ {
		if err := Command("true").Run(); err != nil {
			t.Fatal(err)
		}
	}
	stdout.Close()
	var exit *ExitError
	if err := slow.Wait(); !errors.As(err, &exit) || exit.Report.Main.Signalled.Name != "SIGPIPE" {
		t.Errorf("%v", err)
	}
}

func TestFields(t *testing.T) {
	NeedPinfold(t)
	cmd := Command("sh", "-c", "echo $A$HOME; pwd; ulimit -n")
	cmd.Env, cmd.Dir, cmd.Name = []string{"A=1", "A=2"}, "/", "a name"
	cmd.Limits = map[string]any{"rlimit": []string{"nofile=77"}}
	out, err := cmd.Output()
	if err != nil || string(out) != "2\n/\n77\n" {
		t.Errorf("%q, %v", out, err)
	}
	if !strings.Contains(string(cmd.ProcessState.Report.Raw), `"a name"`) {
		t.Errorf("%s", cmd.ProcessState.Report.Raw)
	}
	cmd = Command("stty", "size")
	cmd.Pty = &Size{Rows: 12, Columns: 34}
	if out, err = cmd.Output(); err != nil || string(out) != "12 34\r\n" {
		t.Errorf("%q, %v", out, err)
	}
}

func TestErrors(t *testing.T) {
	NeedPinfold(t)
	if err := Command("no-such-command").Run(); err == nil {
		t.Error("no error")
	}
	if err := Command("/no/such/command").Run(); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v", err)
	}
	if err := Command("/etc/passwd").Run(); !errors.Is(err, os.ErrPermission) {
		t.Errorf("%v", err)
	}
	cmd := Command("true")
	cmd.Dir = "/no/such"
	if err := cmd.Run(); err == nil || !strings.Contains(err.Error(), "/no/such") {
		t.Errorf("%v", err)
	}
	cmd = Command("true")
	cmd.Limits = map[string]any{"rlimit": []string{"files=1"}}
	if err := cmd.Run(); err == nil || !strings.Contains(err.Error(), "files") {
		t.Errorf("%v", err)
	}
	cmd = Command("true")
	if err := cmd.Wait(); err == nil {
		t.Error("Wait before Start")
	}
	if err := cmd.Run(); err != nil {
		t.Error(err)
	}
	if err := cmd.Start(); err == nil {
		t.Error("two starts")
	}
	if err := cmd.Process.Kill(); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("%v", err)
	}
	// The command does not read its input.
	cmd = Command("true")
	cmd.Stdin = bytes.NewReader(make([]byte, 1_000_000))
	if err := cmd.Run(); err != nil {
		t.Error(err)
	}
}

func TestContextAndTimeout(t *testing.T) {
	NeedPinfold(t)
	ctx, cancel := context.WithCancel(context.Background())
	cmd := CommandContext(ctx, "sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.1; done")
	cmd.WaitDelay = 50 * time.Millisecond
	stdout, _ := cmd.StdoutPipe()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	bufio.NewReader(stdout).ReadString('\n')
	cancel()
	if err := cmd.Wait(); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	if state := cmd.ProcessState.String(); state != "signal: SIGKILL" {
		t.Error(state)
	}
	cmd = Command("sleep", "1000")
	cmd.Timeout = 50 * time.Millisecond
	if err := cmd.Run(); err == nil || cmd.ProcessState.Report.Reason != "deadline" {
		t.Errorf("%v", err)
	}
	if err := CommandContext(ctx, "true").Run(); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	// The command cleans up.
	ctx, cancel = context.WithCancel(context.Background())
	cmd = CommandContext(ctx, "sh", "-c", "trap 'echo cleaned; exit 0' TERM; echo ready; while :; do sleep 0.05; done")
	stdout, _ = cmd.StdoutPipe()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewReader(stdout)
	lines.ReadString('\n')
	cancel()
	if rest, _ := io.ReadAll(lines); string(rest) != "cleaned\n" {
		t.Errorf("%q", rest)
	}
	cmd.Wait()
}

func TestManyAtOnce(t *testing.T) {
	NeedPinfold(t)
	var group sync.WaitGroup
	for i := 0; i < 100; i++ {
		group.Add(1)
		go func() {
			defer group.Done()
			cmd := Command("cat")
			cmd.Stdin = strings.NewReader("x")
			if out, err := cmd.Output(); err != nil || string(out) != "x" {
				t.Errorf("%q %v", out, err)
			}
		}()
	}
	group.Wait()
}

// When pinfold itself is killed, every command ends with an error, and the next command starts another pinfold.
func TestPinfoldIsKilled(t *testing.T) {
	NeedPinfold(t)
	cmd := Command("sh", "-c", "echo $PPID; exec sleep 1000")
	stdout, _ := cmd.StdoutPipe()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	bufio.NewReader(stdout).ReadString('\n')
	job := watch(t, cmd.Process.Pid)
	for _, pid := range children(t) {
		syscall.Kill(pid, syscall.SIGKILL)
	}
	if err := cmd.Wait(); !errors.Is(err, ErrLost) {
		t.Errorf("%v", err)
	}
	job.ended(t)
	if err := Command("true").Run(); err != nil {
		t.Error(err)
	}
}

// children returns the processes that this program has started: only pinfold.
func children(t *testing.T) (pids []int) {
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range tasks {
		text, _ := os.ReadFile("/proc/self/task/" + task.Name() + "/children")
		pids = append(pids, numbers(string(text))...)
	}
	return pids
}
