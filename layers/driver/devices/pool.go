package devices

import "github.com/layerfs/layerfs/layers/driver"

// Pool keeps thin devices by name. Names are those of trees, and "base". Calls for
// different devices may come at once, from several processes. Errors carry their
// class: NoSpace when the pool is full, Busy for a device in use.
type Pool interface {
	// Make makes an empty device of size bytes. It reads as zeros.
	Make(name string, size int64) error

	// Snapshot makes a device with the content that origin has at this moment, and its
	// size unless size is larger. origin may be attached and mounted: what was written
	// and flushed before the call is in the snapshot, as after a power cut at this moment.
	Snapshot(origin, name string, size int64) error

	// Grow makes a device larger, attached or not.
	Grow(name string, size int64) error

	// Remove removes a device with all that is in it, also one that was made in part.
	// One that is not there is no error. Busy while it is attached and in use.
	Remove(name string) error

	// Attach makes a device appear and returns where: a block device, or a file. It may
	// be attached already. Detach ends that; not attached is no error, Busy while
	// something has it open.
	Attach(name string) (path string, err error)
	Detach(name string) error

	// Path is where Attach makes a device appear, "" when that cannot be told before.
	Path(name string) string

	// Size returns the size of a device in bytes, Usage how much of it is mapped to other
	// blocks than the same place of parent is.
	Size(name string) (int64, error)
	Usage(name, parent string) (int64, error)

	// Space returns what there is, for dm.min_free_space and Info.
	Space() (Space, error)

	// Resize makes the pool's data device larger (docker's device_tool).
	Resize(size int64) error

	// Info returns the fields between "Base Device Size" and the end of what `docker
	// info` printed, which differ between pools; Name is "Pool Name".
	Name() string
	Files() []driver.Field      // Data file, Metadata file
	Conditions() []driver.Field // Udev Sync Supported and so on, to Library Version

	// Warnings are what Docker logged at every start, such as of loop files.
	Warnings() []string

	// Stop takes everything out of the kernel; whoever opens the pool next brings it
	// back. Close only ends the use of this value.
	Stop() error
	Close() error
}

// Space is how full a pool is, in bytes.
type Space struct {
	BlockSize                   int64
	DataUsed, DataTotal         int64
	DataAvailable               int64 // no more than the host's file system has
	MetadataUsed, MetadataTotal int64
	MetadataAvailable           int64
}
