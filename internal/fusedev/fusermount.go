package fusedev

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/internal/errs"
)

// flagWords are the mount flags that fusermount3 takes as words.
var flagWords = []struct {
	flag uintptr
	word string
}{
	{unix.MS_RDONLY, "ro"},
	{unix.MS_NOSUID, "nosuid"},
	{unix.MS_NODEV, "nodev"},
	{unix.MS_NOEXEC, "noexec"},
	{unix.MS_SYNCHRONOUS, "sync"},
	{unix.MS_DIRSYNC, "dirsync"},
	{unix.MS_NOATIME, "noatime"},
}

// mountHelper has fusermount3 mount and receives the device's descriptor
// from it.
func mountHelper(cfg MountConfig) (int, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("socketpair: %w", err)
	}
	local := os.NewFile(uintptr(pair[0]), "fusermount socket")
	remote := os.NewFile(uintptr(pair[1]), "fusermount socket")
	defer local.Close()
	err = runHelper(remote, "-o", helperOptions(cfg), "--", cfg.Mountpoint)
	remote.Close() // or an answer that never comes would be waited for
	if err != nil {
		return -1, err
	}
	return receiveFd(int(local.Fd()))
}

func helperOptions(cfg MountConfig) string {
	var o []string
	for _, f := range flagWords {
		if cfg.Flags&f.flag != 0 {
			o = append(o, f.word)
		}
	}
	o = append(o, commonOptions(cfg)...)
	o = append(o, "fsname="+cfg.FsName, "subtype="+cfg.Subtype)
	for i := range o {
		o[i] = escape(o[i])
	}
	return strings.Join(o, ",")
}

func escape(s string) string {
	return strings.NewReplacer(`\`, `\\`, `,`, `\,`).Replace(s)
}

// runHelper runs fusermount3, or its predecessor, with comm as the socket
// on which it answers (nil: none). What it complains about becomes the
// error; our own stderr may be somebody's pipe and is not passed on.
func runHelper(comm *os.File, args ...string) error {
	path, err := findHelper()
	if err != nil {
		return err
	}
	var stderr bytes.Buffer
	cmd := exec.Command(path, args...)
	cmd.Stderr = &stderr
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	if comm != nil {
		cmd.Env = append(cmd.Env, "_FUSE_COMMFD=3")
		cmd.ExtraFiles = []*os.File{comm}
	}
	if err := cmd.Run(); err != nil {
		if msg := strings.TrimSpace(stderr.String()); msg != "" {
			return helperError(msg)
		}
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// helperError gives the helper's message the errno that it names, which
// decides the class of the failure.
func helperError(msg string) error {
	for _, e := range []syscall.Errno{syscall.EBUSY, syscall.ENOENT, syscall.EINVAL, syscall.EPERM} {
		if strings.Contains(strings.ToLower(msg), e.Error()) {
			return &withErrno{msg, e}
		}
	}
	if strings.Contains(msg, "not found in /etc/mtab") {
		return &withErrno{msg, syscall.EINVAL}
	}
	return errors.New(msg)
}

type withErrno struct {
	msg   string
	errno syscall.Errno
}

func (e *withErrno) Error() string { return e.msg }
func (e *withErrno) Unwrap() error { return e.errno }

// findHelper looks in PATH, which a daemon's environment may lack, and
// where distributions put it.
func findHelper() (string, error) {
	for _, name := range []string{"fusermount3", "fusermount"} {
		for _, dir := range []string{"", "/usr/bin/", "/bin/"} {
			if path, err := exec.LookPath(dir + name); err == nil {
				return path, nil
			}
		}
	}
	return "", errs.New(errs.Unsupported, "fusermount3 is not installed, and mounting without it takes CAP_SYS_ADMIN")
}

func receiveFd(sock int) (int, error) {
	var data [4]byte
	oob := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(sock, data[:], oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("fusermount3's answer: %w", err)
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(msgs) != 1 {
		return -1, errors.New("fusermount3 did not pass the descriptor of /dev/fuse")
	}
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil || len(fds) != 1 {
		return -1, errors.New("fusermount3 did not pass the descriptor of /dev/fuse")
	}
	return fds[0], nil
}
