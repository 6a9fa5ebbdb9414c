package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/blockstore"
	"github.com/layerfs/layerfs/blockstore/client"
	"github.com/layerfs/layerfs/blockstore/server"
	"github.com/layerfs/layerfs/internal/errs"
)

// Commands that only this program itself uses.
const (
	poolProcess = "pool-process"
	poolChecker = "pool-checker"
)

// The pool process is there for a long time and mostly idle: it is worth some
// collecting to stay small.
const (
	poolMemory    = 96 << 20 // bytes from which on the collector works harder
	poolGCPercent = 50
)

// runPoolProcess serves the pool whose directory its launcher has opened for
// it, and which is called args[0].
func runPoolProcess(args []string) error {
	if len(args) != 1 {
		return errs.New(errs.Usage, "%s is for layerfs itself", poolProcess)
	}
	closeInherited()
	nameProcess()
	debug.SetMemoryLimit(poolMemory)
	debug.SetGCPercent(poolGCPercent)
	signal.Ignore(syscall.SIGPIPE, syscall.SIGINT, syscall.SIGHUP)
	raiseLimit()
	return server.Run(client.PoolDir(), client.Report)
}

// closeInherited keeps descriptors of whoever started us from being held as
// long as the pool is in use. Descriptor 3 is the launcher's pipe.
func closeInherited() { _ = unix.CloseRange(4, ^uint(0), unix.CLOSE_RANGE_CLOEXEC) }

func poolCheck(args []string) error {
	c := newCommand("pool check", true)
	repair := c.Bool("repair", false, "")
	if done, err := c.parse(args, 1, 1); done || err != nil {
		return err
	}
	unlock, err := stopPool(c.Arg(0))
	if err != nil {
		return err
	}
	defer unlock()
	report, err := checkApart(c.Arg(0), *repair)
	if c.json && report != nil {
		if e := printJSON(report); e != nil {
			return e
		}
	} else if report != nil {
		printReport(report, err)
	}
	if err == nil && len(report.Problems) > 0 && !report.Repaired {
		err = errs.New(errs.Corrupt, "the pool is damaged; `layerfs pool check --repair` mends what can be mended")
	}
	return err
}

// stopPool ends the pool's process, which nobody may be using, and keeps
// another from starting.
func stopPool(dir string) (unlock func(), err error) {
	if _, err := os.Stat(dir); err != nil {
		return nil, err
	}
	p, err := openPool(dir)
	if errs.Of(err) == errs.Corrupt || errs.Of(err) == errs.Unsupported {
		return server.Lock(dir, func() bool { return false }) // damaged: no process can be running
	} else if err != nil {
		return nil, err
	}
	defer p.Close()
	return p.Shutdown()
}

func printReport(r *blockstore.Report, err error) {
	for _, p := range r.Problems {
		fmt.Println(p)
	}
	switch {
	case r.Repaired && err == nil:
		fmt.Printf("repaired: %d devices, %d nodes, %d mapped blocks\n", r.Devices, r.Nodes, r.Mapped)
	case len(r.Problems) == 0 && err == nil:
		fmt.Printf("clean: %d devices, %d nodes, %d mapped blocks\n", r.Devices, r.Nodes, r.Mapped)
	}
}

// verdictOnPool is what the checker tells.
type verdictOnPool struct {
	Report *blockstore.Report `json:"report"`
	Error  string             `json:"error,omitempty"`
	Class  errs.Class         `json:"class,omitempty"`
}

// checkApart checks in a process of its own: badger panics, where nobody can
// recover, on some indexes that are damaged.
func checkApart(dir string, repair bool) (*blockstore.Report, error) {
	args := []string{poolChecker, dir}
	if repair {
		args = append(args, "repair")
	}
	cmd := exec.Command("/proc/self/exe", args...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	var v verdictOnPool
	if json.Unmarshal(out, &v) != nil {
		line, _, _ := strings.Cut(strings.TrimSpace(stderr.String()), "\n")
		return nil, errs.New(errs.Corrupt, "the index of %s is damaged beyond reading: %s (%w)", dir, line, err)
	}
	if v.Error != "" {
		return v.Report, errs.New(v.Class, "%s", v.Error)
	}
	return v.Report, nil
}

func runPoolChecker(args []string) error {
	if len(args) == 0 {
		return errs.New(errs.Usage, "%s is for layerfs itself", poolChecker)
	}
	var v verdictOnPool
	var err error
	if v.Report, err = blockstore.Check(args[0], len(args) > 1); err != nil {
		v.Error, v.Class = err.Error(), errs.Of(err)
	}
	return errors.Join(json.NewEncoder(os.Stdout).Encode(v))
}
