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
	Auto bool     // the user gave no mode: a file system that cannot change makes it RR
	Attr []string // AUFS attributes after the mode: "wh", "nolwh", …
	Fd   int      // the directory, opened by somebody else, who says what Path is; 0 for none
}

// Config is everything that Open needs to know about a stack.
type Config struct {
	Branches   []Spec   // top first
	WorkDir    string   // of the only RW branch; "" for a br= stack, where each has its own, or a read-only one
	Mountpoint string   // absolute; "" when the stack is not to be mounted
	Dialect    string   // "auto", "aufs", "overlay" or "xattr": what is written
	AufsStyle  bool     // the stack was given as br=: aufs is the dialect that auto means
	UserXattr  bool     // the user asked for user.overlay.* instead of trusted.overlay.*
	Policy     Policy   // which of several writable branches receives a change
	ReadOnly   bool     // take no lock, write nothing, even if there are RW branches
	Volatile   bool     // leave (and look for) the mark of a volatile mount; layerfs mount only
	Exclude    []string // absolute directories that must not be shown in any lower branch
	Uppers     int      // of a comparison: how many of the branches are compared with the rest
	Stubs      *Stubs   // of a comparison: how the content of stubs is found
	ShowMarks  bool     // show whiteouts and opaque marks as they lie in the branches (AUFS's shwh); needs ReadOnly
}
