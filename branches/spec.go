package branches

// Mode says what may happen to a branch.
type Mode uint8

const (
	RW Mode = iota // changes may go here
	RO             // only read
	RR             // only read, and its file system can never change
)

func (m Mode) String() string { return [...]string{"rw", "ro", "rr"}[m] }

// Spec names one branch as the user gave it.
type Spec struct {
	Path string // absolute, or relative to the directory at start-up
	Mode Mode
	Attr []string // AUFS attributes after the mode: "wh", "nolwh", …
}

// Config is everything that Open needs to know about a stack.
type Config struct {
	Branches   []Spec   // top first; only index 0 may be RW
	WorkDir    string   // "" for a br= branch or a read-only stack
	Mountpoint string   // absolute; "" when the stack is not to be mounted
	Dialect    string   // "auto", "aufs", "overlay" or "xattr": what is written
	AufsStyle  bool     // the stack was given as br=: aufs is the dialect that auto means
	UserXattr  bool     // the user asked for user.overlay.* instead of trusted.overlay.*
	ReadOnly   bool     // take no lock, write nothing, even if index 0 is RW
	Volatile   bool     // leave (and look for) the mark of a volatile mount; layerfs mount only
	Exclude    []string // absolute directories that must not be shown in any lower branch
}
