package pinfold

import (
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"
)

// TestMain is also the program that the experiments kill: it runs one command through this package.
func TestMain(m *testing.M) {
	if script := os.Getenv("PINFOLD_GO_HOST"); script != "" && os.Getenv("PINFOLD_GO_GRANDCHILD") == "" {
		if os.Getenv("PINFOLD_GO_HOST_CATCHES") != "" {
			signal.Notify(make(chan os.Signal, 1), syscall.SIGINT)
		}
		cmd := Command("sh", "-c", script)
		cmd.Stdout, cmd.WaitDelay = os.Stdout, 200*time.Millisecond
		fmt.Println("ended:", cmd.Run())
		os.Exit(3)
	}
	if leaves := os.Getenv("PINFOLD_GO_GRANDCHILD"); leaves != "" {
		grandchild(leaves)
	}
	os.Setenv("PINFOLD_GO_SELF", os.Args[0])
	onMessage = checkMessage
	code := m.Run()
	if count := checked.Load(); count == 0 && code == 0 {
		fmt.Println("no message was checked against the schema")
		code = 1
	}
	os.Exit(code)
}

// NeedPinfold skips a test where there is no pinfold. Where PINFOLD is set, no test is skipped.
func NeedPinfold(t *testing.T) {
	t.Helper()
	if os.Getenv("PINFOLD") == "" && Command("pinfold").lookPathErr != nil {
		t.Skip("pinfold is not in PATH: set PINFOLD to its path")
	}
}

// A process that a test waits for, through a pidfd, so that another process with its pid is not mistaken for it.
type proc struct {
	pid int
	fd  int
}

const sysPidfdOpen = 434 // On all architectures: pidfd_open(2), Linux 5.3.

func watch(t *testing.T, pid int) proc {
	t.Helper()
	fd, _, errno := syscall.Syscall(sysPidfdOpen, uintptr(pid), 0, 0)
	if errno != 0 {
		t.Fatalf("process %d is not there: %v", pid, errno)
	}
	t.Cleanup(func() { syscall.Close(int(fd)) })
	return proc{pid, int(fd)}
}

// ended waits until the process has ended. The time only ends a hang.
func (p proc) ended(t *testing.T) {
	t.Helper()
	poll := struct {
		fd      int32
		events  int16
		revents int16
	}{int32(p.fd), 1, 0}
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); {
		timeout := syscall.NsecToTimespec(int64(time.Until(deadline)))
		n, _, errno := syscall.Syscall6(syscall.SYS_PPOLL, uintptr(unsafe.Pointer(&poll)), 1, uintptr(unsafe.Pointer(&timeout)), 0, 0, 0)
		if errno == 0 && n == 1 {
			return
		}
	}
	t.Errorf("process %d still runs", p.pid)
}

// numbers returns the numbers in a text.
func numbers(text string) (numbers []int) {
	for _, word := range strings.Fields(text) {
		var number int
		if _, err := fmt.Sscan(word, &number); err == nil {
			numbers = append(numbers, number)
		}
	}
	return numbers
}
