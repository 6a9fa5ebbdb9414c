package main

import (
	"os"
	"path/filepath"

	"github.com/layerfs/layerfs/blockstore/client"
	"github.com/layerfs/layerfs/branches"
	"github.com/layerfs/layerfs/fs"
	"github.com/layerfs/layerfs/internal/errs"
)

func setCopyUpMode(s *settings, value string) error {
	switch value {
	case "auto", "full", "block":
		s.copyUp = value
		return nil
	}
	return badValue("use auto, full or block")
}

func setThreshold(s *settings, value string) error {
	size, err := parseSize(value)
	if err != nil {
		return badValue("%w", err)
	}
	if size < 1 {
		return badValue("must be at least 1; a pool's block is 64K")
	}
	s.fs.Threshold = size
	return nil
}

// copyUpMode is how big files are copied up: in full unless somebody has asked,
// be it by naming a pool.
func (s *settings) copyUpMode() fs.CopyUpMode {
	switch {
	case s.copyUp == "block", s.copyUp == "" && s.pool != "":
		return fs.CopyBlock
	case s.copyUp == "auto":
		return fs.CopyAuto
	}
	return fs.CopyFull
}

// preparePools gives opts the means to open pools if the mount may need any.
func (s *settings) preparePools(stack *branches.Stack, opts *fs.Options) (*launcher, error) {
	stubs := false
	for _, b := range stack.Branches() {
		stubs = stubs || b.Stubs.Load()
	}
	writes := len(stack.Writable()) > 0 && opts.CopyUp != fs.CopyFull
	if !stubs && !writes {
		return nil, nil
	}
	pools := &poolsOf{}
	if s.pool != "" {
		path, err := filepath.Abs(s.pool)
		if err != nil {
			return nil, err
		}
		if _, err := os.Stat(filepath.Join(path, "index")); err != nil {
			return nil, errs.New(errs.NotFound, "pool=%s is not a pool: `layerfs pool create` makes one", s.pool)
		}
		pools.shared, opts.PoolPath = path, path
	}
	l, err := startLauncher()
	if err != nil {
		return nil, err
	}
	pools.start, pools.make = l.start, l.make
	opts.Pools = pools
	return l, nil
}

// poolsHere are the pools of a command that serves no mount.
func poolsHere(shared string) *poolsOf {
	return &poolsOf{start: client.Exec(client.Program(poolProcess)), make: client.Exec(client.Program(poolMaker)), shared: shared}
}

func setSettle(s *settings, value string) error {
	switch value {
	case "idle", "umount":
		s.settleAt = value
		return nil
	}
	return badValue("use idle or umount")
}
