package pinfold

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"
)

// A command with three children: one in a session of its own, and one in a process group of its own. Each of the four
// prints its pid.
const tree = `
sleep 1000 & echo $$ $!
PINFOLD_GO_GRANDCHILD=setsid "$PINFOLD_GO_SELF" &
PINFOLD_GO_GRANDCHILD=setpgid "$PINFOLD_GO_SELF" &
wait`

// grandchild is the program of two of the children.
func grandchild(leaves string) {
	var err error
	if leaves == "setsid" {
		_, err = syscall.Setsid()
	} else {
		err = syscall.Setpgid(0, 0)
	}
	if err != nil {
		panic(err)
	}
	fmt.Println(os.Getpid())
	time.Sleep(1000 * time.Second)
}

// startTree runs the tree in this program.
func startTree(t *testing.T, cmd *Cmd) []proc {
	t.Helper()
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return watchTree(t, stdout)
}

// watchTree reads the pids of the tree.
func watchTree(t *testing.T, stdout io.Reader) (procs []proc) {
	t.Helper()
	lines := bufio.NewReader(stdout)
	for len(procs) < 4 {
		line, err := lines.ReadString('\n')
		if err != nil {
			t.Fatalf("%q, %v", line, err)
		}
		for _, pid := range numbers(line) {
			procs = append(procs, watch(t, pid))
		}
	}
	return procs
}

func allEnded(t *testing.T, procs []proc) {
	t.Helper()
	for _, proc := range procs {
		proc.ended(t)
	}
}

// The first experiment: the program kills its child.
func TestKillTheChild(t *testing.T) {
	NeedPinfold(t)
	cmd := Command("sh", "-c", tree)
	procs := startTree(t, cmd)
	if err := cmd.Process.Kill(); err != nil {
		t.Error(err)
	}
	if err := cmd.Wait(); err == nil || err.Error() != "signal: SIGKILL" {
		t.Errorf("%v", err)
	}
	allEnded(t, procs)
}

// The second experiment: the program kills the process group of its child, which does not reach the sessions and the
// groups of the grandchildren.
func TestKillItsProcessGroup(t *testing.T) {
	NeedPinfold(t)
	cmd := Command("sh", "-c", tree)
	procs := startTree(t, cmd)
	if err := syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	if left := cmd.ProcessState.Report.Leftovers.Count; left == 0 {
		t.Error("the kill of the process group has reached everything, so this test shows nothing")
	}
	allEnded(t, procs)
}

// host starts a program that runs the tree through this package.
func host(t *testing.T, environment ...string) *exec.Cmd {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(append(os.Environ(), "PINFOLD_GO_HOST="+tree), environment...)
	return cmd
}

// The third experiment: Ctrl-C on the terminal of the program.
func TestCtrlC(t *testing.T) {
	NeedPinfold(t)
	for _, environment := range []string{"", "PINFOLD_GO_HOST_CATCHES=1"} {
		master, slave := openPty(t)
		cmd := host(t, environment)
		cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		slave.Close()
		procs := watchTree(t, master)
		if _, err := master.WriteString("\x03"); err != nil {
			t.Fatal(err)
		}
		go io.Copy(io.Discard, master)
		cmd.Wait()
		allEnded(t, procs)
		// A program that catches SIGINT continues, as with os/exec, and sees the end of its command.
		catches := environment != ""
		if lived := cmd.ProcessState.ExitCode() == 3; lived != catches {
			t.Errorf("%q: %v", environment, cmd.ProcessState)
		}
	}
}

// The fourth experiment: a signal to the program.
func TestSignalsToTheProgram(t *testing.T) {
	NeedPinfold(t)
	for _, signal := range []syscall.Signal{syscall.SIGHUP, syscall.SIGINT, syscall.SIGTERM, syscall.SIGKILL} {
		cmd := host(t)
		stdout, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		procs := watchTree(t, stdout)
		if err := cmd.Process.Signal(signal); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); err == nil || !strings.Contains(err.Error(), "signal") {
			t.Errorf("%v: %v", signal, err)
		}
		allEnded(t, procs)
	}
}

// The fifth experiment: a grandchild leaves the process group, and its parent ends.
func TestAGrandchildThatCallsSetpgid(t *testing.T) {
	NeedPinfold(t)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	cmd := CommandContext(ctx, "sh", "-c", strings.Replace(tree, "wait", "exec sleep 1000", 1))
	procs := startTree(t, cmd)
	groups := map[int]bool{}
	for _, proc := range procs {
		group, err := syscall.Getpgid(proc.pid)
		if err != nil {
			t.Fatal(err)
		}
		groups[group] = true
	}
	if len(groups) < 3 {
		t.Errorf("the tree has only the process groups %v", groups)
	}
	cancel()
	cmd.Wait()
	allEnded(t, procs)
}

// openPty returns both sides of a new pseudoterminal (pts(4)).
func openPty(t *testing.T) (master, slave *os.File) {
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("no pseudoterminal here: %v", err)
	}
	t.Cleanup(func() { master.Close() })
	var number, unlock int32
	for _, call := range []struct {
		request uintptr
		value   *int32
	}{{syscall.TIOCGPTN, &number}, {syscall.TIOCSPTLCK, &unlock}} {
		if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, master.Fd(), call.request, uintptr(unsafe.Pointer(call.value))); errno != 0 {
			t.Fatal(errno)
		}
	}
	slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	return master, slave
}
