package fs

import (
	"fmt"
	"path"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/branches"
)

type counters struct {
	opens, copyUps, copiedBytes, blockCopyUps, notCopied atomic.Int64
}

// Status is what `layerfs status` prints.
type Status struct {
	Backend     string `json:"backend"`
	Why         string `json:"why,omitempty"` // this backend; set by who has chosen it
	Dialect     string `json:"dialect"`
	ReadOnly    bool   `json:"read_only"`
	Upper       string `json:"upper,omitempty"`
	Branches    int    `json:"branches"`
	Caches      string `json:"caches"`
	Sync        string `json:"fsync"`
	RedirectDir bool   `json:"redirect_dir"`
	Nodes       int    `json:"nodes"`
	Opens       int64  `json:"opens"`
	CopyUps     int64  `json:"copy_ups"`
	CopiedBytes int64  `json:"copied_bytes"`
	Uptime      string `json:"uptime"`

	CopyUp       string   `json:"copyup"`           // full, block or auto
	Pool         string   `json:"pool,omitempty"`   // the shared pool
	BlockCopyUps int64    `json:"block_copy_ups"`   // of this mount
	NotCopied    int64    `json:"bytes_not_copied"` // by them: what full copies would have copied
	OpenDevices  int      `json:"open_devices"`
	Troubles     []string `json:"troubles,omitempty"` // stubs and pools that failed
}

// Status returns what is to be said of the mount as a whole.
func (f *FS) Status() Status {
	f.gate.Enter()
	defer f.gate.Leave()
	s := Status{
		Backend: "fuse", ReadOnly: f.readOnly(),
		Branches: len(f.stack.Branches()), RedirectDir: f.opts.RedirectDir,
		Caches: "none", Sync: [...]string{"auto", "strict", "volatile"}[f.opts.Sync],
		Nodes: f.table.count(), Opens: f.counters.opens.Load(),
		CopyUps: f.counters.copyUps.Load(), CopiedBytes: f.counters.copiedBytes.Load(),
		Uptime: time.Since(f.started).Round(time.Second).String(),
		CopyUp: [...]string{"full", "block", "auto"}[f.opts.CopyUp], Pool: f.opts.PoolPath,
		BlockCopyUps: f.counters.blockCopyUps.Load(), NotCopied: f.counters.notCopied.Load(),
		OpenDevices: f.files.count(), Troubles: f.troubles.all(),
	}
	if f.opts.Timeout > 0 {
		s.Caches = "entries, attributes, pages, directories"
	}
	if up := f.stack.Upper(); up != nil {
		s.Upper, s.Dialect = up.Path, up.Format.String()
	}
	return s
}

// BranchInfo is one line of `layerfs branches`.
type BranchInfo struct {
	Index   int    `json:"index"`
	Path    string `json:"path"`
	Mode    string `json:"mode"`
	Dialect string `json:"dialect"`
	CopyUps int64  `json:"copy_ups"`
	InUse   int    `json:"in_use"` // nodes that the kernel remembers and that this branch answers for
}

// Branches lists the branches, top first.
func (f *FS) Branches() []BranchInfo {
	f.gate.Enter()
	defer f.gate.Leave()
	use := f.nodesPerBranch()
	var out []BranchInfo
	for _, b := range f.stack.Branches() {
		i := BranchInfo{Index: b.Index, Path: b.Path, Mode: b.Perm(), Dialect: branches.DialectOf(b), CopyUps: b.CopyUps.Load(), InUse: use[b]}
		out = append(out, i)
	}
	return out
}

func (f *FS) nodesPerBranch() map[*branches.Branch]int {
	use := map[*branches.Branch]int{}
	for _, n := range f.table.all() {
		n.mu.Lock()
		use[f.branchOfLocked(n)]++
		n.mu.Unlock()
	}
	return use
}

// Trace says how a path of the mount is resolved.
type Trace struct {
	Path  string      `json:"path"`
	Steps []TraceStep `json:"steps"`
}

// TraceStep is one component of a traced path.
type TraceStep struct {
	Name   string   `json:"name"`
	Kind   string   `json:"kind"` // absent, file, directory or merged directory
	Branch string   `json:"branch,omitempty"`
	Also   []string `json:"also,omitempty"` // the other branches of a merged directory
	Why    string   `json:"why"`
	Blocks *Layout  `json:"blocks,omitempty"` // of a file that was copied up by blocks
}

// Trace resolves p, relative to the root of the mount, component by
// component. A symbolic link is not followed.
func (f *FS) Trace(p string) (Trace, error) {
	f.gate.Enter()
	defer f.gate.Leave()
	t := Trace{Path: path.Clean("/" + p)}
	dir := f.stack.Root()
	t.Steps = append(t.Steps, dirStep("/", dir, "the root of every branch"))
	for _, name := range strings.Split(strings.Trim(t.Path, "/"), "/") {
		if name == "" {
			break
		}
		if dir == nil {
			return t, unix.ENOTDIR
		}
		res, err := f.stack.Lookup(dir, name)
		if err != nil {
			return t, err
		}
		t.Steps = append(t.Steps, f.step(dir, name, &res))
		if res.Kind == branches.NotFound {
			break
		}
		dir = res.Dir
	}
	return t, nil
}

func (f *FS) step(dir *branches.Dir, name string, res *branches.Resolution) TraceStep {
	switch res.Kind {
	case branches.NotFound:
		why := "no branch has it"
		if res.Limit != nil {
			if covered, _ := f.stack.LowerHas(dir, name, res.Limit); covered {
				why = "a whiteout in " + res.Limit.Path + " hides it"
			}
		}
		return TraceStep{Name: name, Kind: "absent", Why: why}
	case branches.Directory:
		why := "topmost branch that has it"
		if parts := res.Dir.Parts(); len(parts) > 1 && path.Base(parts[1].Path(res.Dir)) != name {
			why = fmt.Sprintf("redirected to /%s in the branches below", parts[1].Path(res.Dir))
		}
		return dirStep(name, res.Dir, why)
	}
	step := TraceStep{Name: name, Kind: "file", Branch: res.Where.Branch.Path, Why: "topmost branch that has it"}
	f.traceStub(dir, name, res, &step)
	return step
}

func dirStep(name string, d *branches.Dir, why string) TraceStep {
	s := TraceStep{Name: name, Kind: "directory", Why: why}
	for i, p := range d.Parts() {
		if i == 0 {
			s.Branch = p.Branch.Path
			continue
		}
		s.Kind = "merged directory"
		s.Also = append(s.Also, p.Branch.Path)
	}
	return s
}

// Lines formats a trace for people.
func (t Trace) Lines() []string {
	var out []string
	for _, s := range t.Steps {
		line := fmt.Sprintf("%-20s %-16s %s", s.Name, s.Kind, s.Branch)
		if len(s.Also) > 0 {
			line += " over " + strings.Join(s.Also, ", ")
		}
		out = append(out, strings.TrimRight(line, " ")+"  ("+s.Why+")")
		if s.Blocks != nil {
			out = append(out, s.Blocks.lines()...)
		}
	}
	return out
}
