package main

import (
	"fmt"
	"io"
	"log"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/branches"
	"github.com/layerfs/layerfs/branches/offline"
	"github.com/layerfs/layerfs/fs"
	"github.com/layerfs/layerfs/internal/control"
	"github.com/layerfs/layerfs/internal/errs"
	"github.com/layerfs/layerfs/internal/sys"
	"github.com/layerfs/layerfs/internal/units"
	"github.com/layerfs/layerfs/whiteout"
)

func init() {
	commandHelp["settle"] = `Usage: layerfs settle [--json] MOUNTPOINT
       layerfs settle [--json] [--workdir DIR] [--lower DIR]... [--pool POOL] UPPERDIR

Turns every file that was copied up by blocks into a plain one, and every renamed
directory of a lower branch, of which all content is copied: of a live mount, whose
files stay in use, or of a branch that nobody has mounted; there, directories need
--lower. Killed, it can be run again. Exit code 1 when something could not be settled;
it is as it was.

  --workdir DIR   the workdir= of the upper; that of a br= branch is found
  --lower DIR     a branch below, top first; without, lower files are looked for
                  where they were when they were copied up
  --pool POOL     the shared pool, if the upper was mounted with pool=

Example:
  layerfs settle /merged
  layerfs settle --workdir /work --lower /image /changes
`
}

// settleEvery is how often progress is asked for and shown.
const settleEvery = 200 * time.Millisecond

func cmdSettle(args []string) error {
	c := newCommand("settle", true)
	var u offlineUpper
	c.StringVar(&u.workDir, "workdir", "", "")
	c.StringArrayVar(&u.lowers, "lower", nil, "")
	c.StringVar(&u.pool, "pool", "", "")
	if done, err := c.parse(args, 1, 1); done || err != nil {
		return err
	}
	u.dir = c.Arg(0)
	status, err := settle(&u)
	if err != nil {
		return err
	}
	if c.json {
		if err := printJSON(status); err != nil {
			return err
		}
	} else {
		for _, line := range status.Failed {
			fmt.Println("left:", line)
		}
		fmt.Printf("%d of %d files settled, %s copied\n", status.Settled, status.Files, units.Decimal(status.Copied))
		if status.Directories > 0 {
			fmt.Printf("%d renamed directories settled\n", status.Directories)
		}
		if status.Redirects > 0 {
			fmt.Printf("%d renamed directories keep their redirects\n", status.Redirects)
		}
	}
	switch {
	case status.Error != "":
		return errs.New(errs.Failed, "settle %s: %s", u.dir, status.Error)
	case len(status.Failed) > 0:
		return errs.New(errs.Failed, "settle %s: %d files or directories are left", u.dir, len(status.Failed))
	}
	return nil
}

func settle(u *offlineUpper) (fs.SettleStatus, error) {
	if isFuse(u.dir) == nil {
		return settleMount(u.dir)
	}
	return u.settle()
}

// settleMount has the daemon of a mount settle, and shows how it gets on.
func settleMount(mountpoint string) (status fs.SettleStatus, err error) {
	if err := flush(mountpoint); err != nil {
		return status, err
	}
	if err := control.Call(mountpoint, "settle", nil, nil); err != nil {
		return status, err
	}
	show := newSettleLine()
	defer show.end()
	for {
		if err := control.Call(mountpoint, "settle status", nil, &status); err != nil {
			return status, err
		}
		if !status.Running {
			return status, nil
		}
		show.line(status)
		time.Sleep(settleEvery)
	}
}

// settleLine is a line on a terminal that is written again and again.
type settleLine struct {
	out  io.Writer // nil when stderr is none
	long int
}

func newSettleLine() *settleLine {
	if _, err := unix.IoctlGetTermios(2, unix.TCGETS); err != nil {
		return &settleLine{}
	}
	return &settleLine{out: os.Stderr}
}

func (p *settleLine) line(s fs.SettleStatus) {
	if p.out == nil {
		return
	}
	text := fmt.Sprintf("%d/%d files, %s of %s  %s", s.Done, s.Files, units.Decimal(s.Copied), units.Decimal(s.Bytes), s.Path)
	if len(text) > 100 {
		text = text[:97] + "..."
	}
	fmt.Fprintf(p.out, "\r%s%s", text, strings.Repeat(" ", max(0, p.long-len(text))))
	p.long = len(text)
}

func (p *settleLine) end() {
	if p.out != nil && p.long > 0 {
		fmt.Fprintf(p.out, "\r%s\r", strings.Repeat(" ", p.long))
	}
}

// offlineUpper is a branch that nobody has mounted, and what belongs to it.
type offlineUpper struct {
	dir, workDir, pool string
	lowers             []string
}

// settle mounts the branch without showing it to anybody.
func (u *offlineUpper) settle() (status fs.SettleStatus, err error) {
	alone, err := offline.OpenAlone(u.dir, u.workDir)
	if err != nil {
		return status, err
	}
	st, err := sys.StatAt(alone.Root, whiteout.PrivateDir, 0)
	own := err == nil && st.IsDir()
	dir := alone.Path
	alone.Close() // with its lock, which the stack is about to take
	f, err := u.open(dir)
	if err != nil {
		return status, err
	}
	show := newSettleLine()
	done := make(chan struct{})
	go func() {
		defer close(done)
		status = f.Settle(len(u.lowers) > 0)
	}()
	for running := true; running; {
		select {
		case <-done:
			running = false
		case <-time.After(settleEvery):
			show.line(f.SettleStatus())
		}
	}
	show.end()
	err = f.Close()
	if u.workDir == "" && !own {
		// It was only there for this.
		_ = os.RemoveAll(dir + "/" + whiteout.PrivateDir)
	}
	return status, err
}

func (u *offlineUpper) open(dir string) (*fs.FS, error) {
	cfg := branches.Config{AufsStyle: u.workDir == "", WorkDir: u.workDir}
	cfg.Branches = append(cfg.Branches, branches.Spec{Path: dir, Mode: branches.RW})
	for _, low := range u.lowers {
		cfg.Branches = append(cfg.Branches, branches.Spec{Path: low, Mode: branches.RO})
	}
	stack, err := branches.Open(cfg)
	if err != nil {
		return nil, err
	}
	f, err := fs.New(stack, fs.Options{Pools: poolsHere(u.pool), RedirectDir: true,
		OriginPaths: len(u.lowers) == 0, Log: log.New(os.Stderr, "layerfs: ", 0)})
	if err != nil {
		stack.Close()
	}
	return f, err
}
