package kernelbackend

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/internal/errs"
	"github.com/layerfs/layerfs/internal/records"
	"github.com/layerfs/layerfs/internal/sys"
)

// ProbeCommand is the first argument with which this program is executed for a
// part of Probe: it is to call ProbeProcess with those that follow.
const ProbeCommand = "probe-process"

// probeMark, in the environment, is what a process is executed with that tries something.
// A program that does not know ProbeCommand, and probes, would execute itself for ever.
const probeMark = "_LAYERFS_PROBE"

// overlayHere tries overlay in a mount namespace of its own.
func overlayHere(dir string) Backend {
	b := inNamespace(dir, &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS})
	if b.Reason == syscall.EPERM.Error() {
		b.Reason = "mounting takes root or CAP_SYS_ADMIN"
	}
	return b
}

// overlayRootless tries overlay as the root of a user namespace.
func overlayRootless(dir string) Backend {
	return inNamespace(dir, &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{HostID: os.Geteuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{HostID: os.Getegid(), Size: 1}},
	})
}

// inNamespace has ProbeProcess try overlay in a process with the attributes attr,
// with whose end all its mounts end.
func inNamespace(dir string, attr *syscall.SysProcAttr) Backend {
	if os.Getenv(probeMark) != "" {
		return no("this program does not know %s", ProbeCommand)
	}
	cmd := exec.Command("/proc/self/exe", ProbeCommand, dir)
	cmd.Env = append(os.Environ(), probeMark+"=1")
	attr.Pdeathsig = syscall.SIGKILL
	cmd.SysProcAttr = attr
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return Backend{Reason: errno.Error()}
	}
	var b Backend
	if jsonErr := json.Unmarshal(out, &b); jsonErr != nil {
		line, _, _ := strings.Cut(strings.TrimSpace(stderr.String()), "\n")
		return no("the process that tries it has failed: %w %s", errors.Join(err, jsonErr), line)
	}
	return b
}

// ProbeProcess tries overlay in the directory args[0] and prints a Backend.
func ProbeProcess(args []string) error {
	if len(args) != 1 {
		return errs.New(errs.Usage, "%s is for layerfs itself", ProbeCommand)
	}
	var b Backend
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		b = no("mounts cannot be kept private: %w", err)
	} else {
		b = tryOverlay(args[0])
	}
	return json.NewEncoder(os.Stdout).Encode(b)
}

// overlayFeatures are tried one by one, each by an overlay of its own.
var overlayFeatures = []struct {
	name  string
	alter func(*Overlay)
	try   func(*stage) error
}{
	{"userxattr", func(o *Overlay) { o.UserXattr, o.RedirectDir = true, false }, (*stage).changes},
	{"redirect_dir", func(o *Overlay) { o.RedirectDir = true }, (*stage).renames},
	{"metacopy", func(o *Overlay) { o.Metacopy = true }, (*stage).copiesMetadata},
	{"index", func(o *Overlay) { o.Index = true }, (*stage).keepsLinks},
	{"volatile", func(o *Overlay) { o.Volatile = true }, (*stage).isVolatile},
	{"101 lowers", manyLowers(101), (*stage).changes},
	{"500 lowers", manyLowers(maxLowers), (*stage).changes},
}

// tryOverlay tries a plain overlay and then what it can do besides.
func tryOverlay(dir string) Backend {
	if err := tryOne(dir, "plain", func(*Overlay) {}, (*stage).changes); err != nil {
		return no("%w", err)
	}
	b := Backend{OK: true, Features: []Feature{feature("trusted", trusted(dir))}}
	for _, f := range overlayFeatures {
		b.Features = append(b.Features, feature(f.name, tryOne(dir, f.name, f.alter, f.try)))
	}
	return b
}

// trusted tries the attributes in which overlay keeps its records without userxattr.
func trusted(dir string) error {
	if err := unix.Setxattr(dir, "trusted.overlay.opaque", []byte("n"), 0); err != nil {
		return fmt.Errorf("trusted. attributes: %w: overlays are mounted with userxattr", err)
	}
	return nil
}

// stage is an overlay over a lower with something in it.
type stage struct {
	Overlay
	lower string // the lowest
}

func tryOne(dir, name string, alter func(*Overlay), try func(*stage) error) (err error) {
	dir = filepath.Join(dir, strings.ReplaceAll(name, " ", "-"))
	s := &stage{Overlay{
		Upper: filepath.Join(dir, "u"), Work: filepath.Join(dir, "w"), Mountpoint: filepath.Join(dir, "m"),
	}, filepath.Join(dir, "l")}
	for _, d := range []string{dir, s.Upper, s.Work, s.Mountpoint, s.lower, filepath.Join(s.lower, "d")} {
		if err := os.Mkdir(d, 0755); err != nil {
			return err
		}
	}
	defer removeAll(dir)
	for _, f := range []string{"a", "b"} {
		if err := os.WriteFile(filepath.Join(s.lower, f), []byte("lower"), 0644); err != nil {
			return err
		}
	}
	alter(&s.Overlay)
	s.Lowers = append(s.Lowers, s.lower)
	if err := os.Link(filepath.Join(s.lower, "a"), filepath.Join(s.lower, "link")); err != nil {
		return err
	}
	if err := MountOverlay(s.Overlay); err != nil {
		return err
	}
	defer func() {
		if uerr := UnmountOverlay(s.Mountpoint, false); err == nil {
			err = uerr
		}
	}()
	return try(s)
}

// removeAll removes dir here, where directories of the kernel's own that are
// closed even to their owner can be entered.
func removeAll(dir string) {
	parent, err := sys.OpenRoot(filepath.Dir(dir))
	if err != nil {
		return
	}
	defer sys.Close(parent)
	_ = sys.RemoveAll(parent, filepath.Base(dir))
}

func manyLowers(n int) func(*Overlay) {
	return func(o *Overlay) {
		for i := range n - 1 {
			l := filepath.Join(filepath.Dir(o.Upper), fmt.Sprint("l", i))
			_ = os.Mkdir(l, 0755) // what goes wrong shows at the mount
			o.Lowers = append(o.Lowers, l)
		}
	}
}

func (s *stage) at(name string) string { return filepath.Join(s.Mountpoint, name) }

// changes copies up, deletes and replaces, and looks at what that leaves.
func (s *stage) changes() error {
	if err := os.WriteFile(s.at("a"), []byte("upper"), 0644); err != nil {
		return fmt.Errorf("changing a file: %w", err)
	}
	if err := os.Remove(s.at("b")); err != nil {
		return fmt.Errorf("deleting a file: %w", err)
	}
	var st unix.Stat_t
	if err := unix.Lstat(filepath.Join(s.Upper, "b"), &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != 0 {
		return errors.New("a deleted file leaves no whiteout in the upper")
	}
	if err := os.Remove(s.at("d")); err != nil {
		return fmt.Errorf("deleting a directory: %w", err)
	}
	if err := os.Mkdir(s.at("d"), 0755); err != nil {
		return fmt.Errorf("replacing a directory: %w", err)
	}
	if v, err := s.record("d", "opaque"); err != nil || v != "y" {
		return errors.New("a directory that replaces another is not marked opaque")
	}
	return nil
}

// record reads one of the overlay's attributes in the upper.
func (s *stage) record(name, attr string) (string, error) {
	var buf [256]byte
	ns := "trusted."
	if s.userXattr() {
		ns = "user."
	}
	n, err := unix.Lgetxattr(filepath.Join(s.Upper, name), ns+"overlay."+attr, buf[:])
	return string(buf[:max(n, 0)]), err
}

func (s *stage) renames() error {
	if err := os.Rename(s.at("d"), s.at("e")); err != nil {
		return fmt.Errorf("renaming a directory: %w", err)
	}
	return nil
}

func (s *stage) copiesMetadata() error {
	if err := os.Chmod(s.at("a"), 0600); err != nil {
		return err
	}
	if _, err := s.record("a", "metacopy"); err != nil {
		return errors.New("changing a mode copies the data too")
	}
	return nil
}

func (s *stage) keepsLinks() error {
	if err := os.WriteFile(s.at("a"), []byte("upper"), 0644); err != nil {
		return err
	}
	if text, err := os.ReadFile(s.at("link")); err != nil || string(text) != "upper" {
		return errors.New("hard links break at the first change")
	}
	return nil
}

func (s *stage) isVolatile() error {
	if !exists(filepath.Join(s.Work, records.KernelVolatile)) {
		return errors.New("the kernel leaves no mark of a volatile mount")
	}
	return nil
}
