package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/tests/bench/work"
)

// nobody is who works without rights.
const nobody = 65534

// peer is one way of putting an upper over the lower.
type peer struct {
	name  string
	tool  string // what must be installed; "" always there
	user  uint32 // whose it is, and who works in it
	mount func(p *peer, lower, upper, work, mnt string) error
}

var peers = []peer{
	{"native", "", 0, nil},
	{"overlay", "", 0, func(_ *peer, lower, upper, work, mnt string) error {
		return unix.Mount("overlay", mnt, "overlay", 0, overlayOptions(lower, upper, work))
	}},
	{"layerfs", "", 0, func(p *peer, lower, upper, work, mnt string) error {
		return p.run(*layerfs, "-o", overlayOptions(lower, upper, work), mnt)
	}},
	{"layerfs, passthrough", "", 0, func(p *peer, lower, upper, work, mnt string) error {
		return p.run(*layerfs, "-o", overlayOptions(lower, upper, work)+",passthrough", mnt)
	}},
	{"layerfs, rootless", "", nobody, func(p *peer, lower, upper, work, mnt string) error {
		return p.run(*layerfs, "-o", overlayOptions(lower, upper, work), mnt)
	}},
	{"fuse-overlayfs", "fuse-overlayfs", 0, func(p *peer, lower, upper, work, mnt string) error {
		return p.run("fuse-overlayfs", "-o", overlayOptions(lower, upper, work), mnt)
	}},
	{"fuse-overlayfs, rootless", "fuse-overlayfs", nobody, func(p *peer, lower, upper, work, mnt string) error {
		return p.run("fuse-overlayfs", "-o", overlayOptions(lower, upper, work), mnt)
	}},
	{"unionfs-fuse", "unionfs", 0, func(p *peer, lower, upper, _, mnt string) error {
		lowers := strings.ReplaceAll(lower, ":", "=RO:")
		return p.run("unionfs", "-o", "cow,allow_other,suid,dev", upper+"=RW:"+lowers+"=RO", mnt)
	}},
}

func overlayOptions(lower, upper, work string) string {
	return fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", lower, upper, work)
}

// run runs a program as the peer's user.
func (p *peer) run(name string, args ...string) error {
	cmd := exec.Command(name, args...)
	if p.user != 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: p.user, Gid: p.user}}
		cmd.Env = []string{"PATH=" + os.Getenv("PATH")}
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, out)
	}
	return nil
}

// installed returns the peers that are there.
func installed() (there []peer) {
	for _, p := range peers {
		if p.tool != "" {
			if _, err := exec.LookPath(p.tool); err != nil {
				fmt.Fprintf(os.Stderr, "%s is not installed: left out\n", p.name)
				continue
			}
		}
		there = append(there, p)
	}
	return there
}

// set mounts a peer with an empty upper, or copies the tree for native.
func set(p peer, lower string) (root string, done func()) {
	root, done = trySet(p, lower)
	if done == nil {
		work.Check(fmt.Errorf("%s cannot be mounted", p.name))
	}
	return root, done
}

// trySet is set; done is nil when the peer refuses.
func trySet(p peer, lower string) (root string, done func()) {
	at, err := os.MkdirTemp(*dir, "run-")
	work.Check(err)
	mnt := filepath.Join(at, "m")
	for _, d := range []string{"u", "w"} {
		work.Check(os.Mkdir(filepath.Join(at, d), 0755))
		work.Check(os.Chown(filepath.Join(at, d), int(p.user), int(p.user)))
	}
	work.Check(os.Chmod(at, 0755))
	if p.mount == nil {
		sh("cp", "-a", lower, mnt)
		unix.Sync()
		return mnt, func() { work.Check(os.RemoveAll(at)) }
	}
	work.Check(os.Mkdir(mnt, 0755))
	work.Check(os.Chown(mnt, int(p.user), int(p.user)))
	if err := p.mount(&p, lower, filepath.Join(at, "u"), filepath.Join(at, "w"), mnt); err != nil {
		fmt.Fprintf(os.Stderr, "mounting %s: %v\n", p.name, err)
		work.Check(os.RemoveAll(at))
		return "", nil
	}
	return mnt, func() {
		unmount(mnt)
		work.Check(os.RemoveAll(at))
		unix.Sync()
	}
}

func unmount(mnt string) {
	var err error
	for i := 0; i < 50; i++ {
		if err = unix.Unmount(mnt, 0); err == nil {
			time.Sleep(100 * time.Millisecond) // the daemon's end
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	work.Check(fmt.Errorf("unmounting %s: %w", mnt, err))
}
