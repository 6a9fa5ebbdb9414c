package branches

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/layerfs/layerfs/internal/sys"
)

// Policy says which of several writable branches receives a change. The rules
// are those of aufs(5), "Policies to Select One among Multiple Writable
// Branches"; the zero value is what AUFS does by itself.
type Policy struct {
	Create CreatePolicy
	CopyUp CopyUpPolicy
	Low    uint64        // in bytes, for those policies that have a watermark
	Every  time.Duration // how long a measure of free space is good for
}

// CreatePolicy chooses the branch of a new name.
type CreatePolicy uint8

const (
	TopDownParent      CreatePolicy = iota // the highest with the parent directory
	RoundRobin                             // one after the other; directories do not count
	MostFree                               // the one with most free space
	MostFreeRoundRobin                     // the same, but round robin when that has less than Low
	ParentMostFree                         // of those with the parent directory, the one with most free space
	ParentMostFreeAll                      // the same, but regardless of the parent when all those have less than Low
	TopDownFree                            // the highest with at least Low free, else MostFree
)

// CopyUpPolicy chooses the branch that a file of a lower is copied to.
type CopyUpPolicy uint8

const (
	CopyTopDownParent  CopyUpPolicy = iota // as TopDownParent
	CopyBottomUpParent                     // the nearest above the source with the parent directory
	CopyBottomUp                           // the nearest above the source
)

// freeEvery and maxFreeEvery are AUFS_MFS_DEF_SEC and AUFS_MFS_MAX_SEC.
const (
	freeEvery    = 30 * time.Second
	maxFreeEvery = 3600 * time.Second
)

// createPolicies are the names of the policies and whether they have a watermark.
var createPolicies = map[string]struct {
	policy   CreatePolicy
	low, sec bool
}{
	"tdp": {TopDownParent, false, false}, "top-down-parent": {TopDownParent, false, false},
	"rr": {RoundRobin, false, false}, "round-robin": {RoundRobin, false, false},
	"mfs": {MostFree, false, true}, "most-free-space": {MostFree, false, true},
	"mfsrr":  {MostFreeRoundRobin, true, true},
	"pmfs":   {ParentMostFree, false, true},
	"pmfsrr": {ParentMostFreeAll, true, true},
	"tdmfs":  {TopDownFree, true, true},
}

var copyUpPolicies = map[string]CopyUpPolicy{
	"tdp": CopyTopDownParent, "top-down-parent": CopyTopDownParent,
	"bup": CopyBottomUpParent, "bottom-up-parent": CopyBottomUpParent,
	"bu": CopyBottomUp, "bottom-up": CopyBottomUp,
}

// SetCreate reads the value of create=: NAME[:LOW][:SECONDS], LOW in bytes.
func (p *Policy) SetCreate(value string) error {
	words := strings.Split(value, ":")
	known, ok := createPolicies[words[0]]
	if !ok {
		return fmt.Errorf("policy %q is unknown: use tdp, rr, mfs[:SEC], mfsrr:LOW[:SEC], pmfs[:SEC], pmfsrr:LOW[:SEC] or tdmfs:LOW[:SEC]", words[0])
	}
	p.Create, p.Low, p.Every = known.policy, 0, freeEvery
	rest := words[1:]
	if known.low {
		if len(rest) == 0 {
			return fmt.Errorf("%s needs a number of bytes: %s:LOW[:SEC]", words[0], words[0])
		}
		low, err := strconv.ParseUint(rest[0], 10, 64)
		if err != nil {
			return fmt.Errorf("%q is no number of bytes", rest[0])
		}
		p.Low, rest = low, rest[1:]
	}
	if known.sec && len(rest) > 0 {
		sec, err := strconv.ParseUint(rest[0], 10, 32)
		if err != nil || time.Duration(sec)*time.Second > maxFreeEvery {
			return fmt.Errorf("%q is no number of seconds from 0 to %d", rest[0], int(maxFreeEvery.Seconds()))
		}
		p.Every, rest = time.Duration(sec)*time.Second, rest[1:]
	}
	if len(rest) > 0 {
		return fmt.Errorf("%q is one number too many for %s", rest[0], words[0])
	}
	return nil
}

// SetCopyUp reads the value of cpup=.
func (p *Policy) SetCopyUp(value string) error {
	policy, ok := copyUpPolicies[value]
	if !ok {
		return fmt.Errorf("policy %q is unknown: use tdp, bup or bu", value)
	}
	p.CopyUp = policy
	return nil
}

// chooser is a policy at work.
type chooser struct {
	Policy // immutable

	mu   sync.Mutex
	next int                // of round robin. Protected by mu.
	free map[*Branch]uint64 // bytes. Protected by mu.
	read time.Time          // when free was measured. Protected by mu.
}

// ForCreate returns the writable branch on which a new name in d is to be
// made, a directory if dir; nil when there is none. limit, if not nil, is the
// branch in which something hides what lies below at that name: "the policy
// will be ignored and the target file will be created on the nearest upper
// writable branch" (aufs(5), Exceptions for Policies).
func (s *Stack) ForCreate(d *Dir, limit *Branch, dir bool) *Branch {
	if len(s.writable) == 0 {
		return nil
	}
	b := s.writable[0]
	if len(s.writable) > 1 {
		b = s.policyChoice(d, dir)
	}
	return s.AtOrAbove(b, s.Lowest(d, limit))
}

// Lowest is the index of the lowest branch on which a name in d may be made.
func (s *Stack) Lowest(d *Dir, limit *Branch) int {
	low := d.Floor()
	if limit != nil {
		low = min(low, limit.Index)
	}
	return low
}

// AtOrAbove returns b, or the nearest writable branch above it whose index is
// not above low; nil when there is none.
func (s *Stack) AtOrAbove(b *Branch, low int) *Branch {
	if b.Index <= low {
		return b
	}
	return s.nearest(low)
}

// nearest returns the lowest writable branch with an index of at most low.
func (s *Stack) nearest(low int) *Branch {
	for i := len(s.writable) - 1; i >= 0; i-- {
		if s.writable[i].Index <= low {
			return s.writable[i]
		}
	}
	return nil
}

func (s *Stack) policyChoice(d *Dir, dir bool) *Branch {
	c := &s.chooser
	c.mu.Lock()
	defer c.mu.Unlock()
	switch c.Create {
	case RoundRobin:
		return s.roundRobinLocked(dir)
	case MostFree:
		return s.mostFreeLocked(s.writable)
	case MostFreeRoundRobin:
		if b := s.mostFreeLocked(s.writable); c.free[b] >= c.Low {
			return b
		}
		return s.roundRobinLocked(dir)
	case ParentMostFree, ParentMostFreeAll:
		with := s.withParent(d)
		b := s.mostFreeLocked(with)
		if b == nil || c.Create == ParentMostFreeAll && c.free[b] < c.Low {
			return s.mostFreeLocked(s.writable)
		}
		return b
	case TopDownFree:
		s.measureLocked()
		for _, b := range s.writable {
			if c.free[b] >= c.Low {
				return b
			}
		}
		return s.mostFreeLocked(s.writable)
	}
	return s.topDownParent(d, math.MaxInt)
}

// topDownParent returns the highest writable branch that has d; without one
// the nearest above where d is, "the policy for this copyup is always
// bottom-up", and as the last resort any.
func (s *Stack) topDownParent(d *Dir, below int) *Branch {
	if with := s.withParent(d); len(with) > 0 && with[0].Index < below {
		return with[0]
	}
	if parts := d.Parts(); len(parts) > 0 {
		if b := s.nearest(min(parts[0].Branch.Index, below) - 1); b != nil {
			return b
		}
	}
	return s.writable[0]
}

func (s *Stack) withParent(d *Dir) []*Branch {
	var out []*Branch
	for _, p := range d.Parts() {
		if p.path == "" {
			out = append(out, p.Branch)
		}
	}
	return out
}

// roundRobinLocked: "mkdir(2) systemcall is an exception. When you create 10
// new directories, all are created on the same branch."
func (s *Stack) roundRobinLocked(dir bool) *Branch {
	b := s.writable[s.chooser.next%len(s.writable)]
	if !dir {
		s.chooser.next++
	}
	return b
}

// mostFreeLocked returns the branch of list, the higher of equals, with the
// most free space; nil for an empty list.
func (s *Stack) mostFreeLocked(list []*Branch) *Branch {
	s.measureLocked()
	var best *Branch
	for _, b := range list {
		if best == nil || s.chooser.free[b] > s.chooser.free[best] {
			best = b
		}
	}
	return best
}

func (s *Stack) measureLocked() {
	c := &s.chooser
	if c.free != nil && time.Since(c.read) < c.Every {
		return
	}
	c.free, c.read = make(map[*Branch]uint64, len(s.writable)), time.Now()
	for _, b := range s.writable {
		c.free[b] = freeSpace(b)
	}
}

// freeSpace is a variable so that tests need no file systems of many sizes.
var freeSpace = func(b *Branch) uint64 {
	st, err := sys.Statfs(b.Root)
	if err != nil {
		return 0
	}
	return st.Bavail * uint64(st.Bsize)
}

// ForCopyUp returns the writable branch to which something in d that lies in
// the branch with index from is to be copied; nil when none is above it.
func (s *Stack) ForCopyUp(d *Dir, from int) *Branch {
	low := min(from-1, d.Floor())
	if len(s.writable) < 2 {
		return s.nearest(low)
	}
	switch s.chooser.CopyUp {
	case CopyBottomUpParent:
		with := s.withParent(d)
		for i := len(with) - 1; i >= 0; i-- {
			if with[i].Index <= low {
				return with[i]
			}
		}
	case CopyTopDownParent:
		return s.AtOrAbove(s.topDownParent(d, from), low)
	}
	return s.nearest(low)
}

// Nearest returns the nearest writable branch above the one with index from on
// which a name in d may be made: where copy-up on open goes, whatever the
// policy says.
func (s *Stack) Nearest(d *Dir, from int) *Branch { return s.nearest(min(from-1, d.Floor())) }
