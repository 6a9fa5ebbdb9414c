package run

import (
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/tests/harness"
)

func itoa(n int) string { return strconv.Itoa(n) }

func atoi(s string) int {
	n, _ := strconv.Atoi(s)
	return n
}

// screen is a shell on a terminal of its own.
type screen struct {
	t      *testing.T
	master *os.File
	cmd    *exec.Cmd
	mu     sync.Mutex
	text   strings.Builder // protected by mu
}

func newScreen(t *testing.T) *screen {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	require.NoError(t, err)
	require.NoError(t, unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0))
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	require.NoError(t, err)
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|syscall.O_NOCTTY, 0)
	require.NoError(t, err)
	defer slave.Close()
	s := &screen{t: t, master: master, cmd: exec.Command("bash", "--norc", "--noediting", "-i")}
	s.cmd.Env = append(os.Environ(), "PS1=", "TERM=dumb")
	s.cmd.Stdin, s.cmd.Stdout, s.cmd.Stderr = slave, slave, slave
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	require.NoError(t, s.cmd.Start())
	go s.read()
	t.Cleanup(func() {
		_ = s.cmd.Process.Kill()
		_ = s.cmd.Wait()
		master.Close()
	})
	return s
}

func (s *screen) read() {
	buf := make([]byte, 4096)
	for {
		n, err := s.master.Read(buf)
		s.mu.Lock()
		s.text.Write(buf[:n])
		s.mu.Unlock()
		if err != nil {
			return
		}
	}
}

func (s *screen) shown() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

// enter types text and waits until want has appeared once more.
func (s *screen) enter(text, want string) {
	s.t.Helper()
	before := strings.Count(s.shown(), want)
	_, err := s.master.WriteString(text)
	require.NoError(s.t, err)
	ok := harness.Eventually(harness.Moment, func() bool { return strings.Count(s.shown(), want) > before })
	require.True(s.t, ok, "%q is not followed by %q:\n%s", text, want, s.shown())
}

const (
	interrupt = "\x03"
	suspend   = "\x1a"
)

// A terminal does inside what it does outside. (Commands are typed such that
// what they print is not what was typed.)
func TestTerminal(t *testing.T) {
	b := newBench(t)
	harness.RequireTool(t, "bash", "bash")
	s := newScreen(t)
	run := harness.Bin() + " run --root " + b.P("store") + " "
	s.enter("echo re''ady\n", "ready")

	// A command by itself: ^C ends it, ^Z and fg are the shell's.
	s.enter(run+"-- sh -c 'echo u''p; exec sleep 100'\n", "up")
	s.enter(interrupt, "^C")
	s.enter("echo co''de=$?\n", "code=130")
	s.enter(run+"-- sh -c 'echo u''p; exec sleep 2'\n", "up")
	s.enter(suspend, "Stopped")
	s.enter("fg; echo co''de=$?\n", "code=0")

	// A shell inside has job control of its own, and its terminal has a name.
	s.enter(run+"-- bash --norc --noediting -i\necho in''side\n", "inside")
	s.enter("tty\n", "/dev/console")
	s.enter("sleep 100\n", "")
	time.Sleep(300 * time.Millisecond) // until it is in front
	s.enter(interrupt, "^C")
	s.enter("echo co''de=$?\n", "code=130")
	s.enter("sleep 101\n", "")
	time.Sleep(300 * time.Millisecond)
	s.enter(suspend, "Stopped")
	s.enter("jobs\n", "sleep 101")
	s.enter("exit 9; exit 9\n", "exit")
	s.enter("\necho co''de=$?\n", "code=")
	require.NotContains(t, s.shown(), "job control")

	// The shell outside has the terminal back.
	s.enter("cat >/dev/null & wait; echo ba''ck\n", "back")
	require.True(t, harness.Eventually(harness.Moment, func() bool { return len(b.left()) == 0 }))
}
