// Package kernelbackend has the kernel do what layerfs does in user space,
// where the kernel can.
//
// # Overlay
//
// MountOverlay mounts a stack of directories with the kernel's overlay. What the
// upper holds afterwards is in the overlay dialect (package whiteout), and its root
// says so, as after a mount of the FUSE union: the one and the other may mount the
// same upper in turn. What they do not both read is refused with the option
// that is needed:
//
//   - another dialect, or attributes in the other namespace than the mount's;
//
//   - hard links across branches, which the FUSE union keeps in a link index
//     (doc/decisions/005) and the kernel, with index=on, in one of its own. Neither
//     reads the other's. So index is off unless asked for, and an upper with
//     either kind of links goes back to who has made them;
//
//   - metadata-only copies (metacopy=on), which the FUSE union does not know.
//
//   - directories that the FUSE union has redirected in user. attributes: the
//     kernel follows only trusted. ones, and answers EPERM otherwise.
//
// Links of the kernel's and metadata-only copies are recorded in
// records.KernelAttr on the root of the upper.
//
// Directories are handed to the kernel as descriptors where it takes them (Linux
// 6.13), else as paths in the one page that mount(2) takes, else as short names
// relative to a directory in which only the mounting thread stands.
//
// A kernel mount has no process that could hold the lock of the work directory:
// the lock is only tried, and the table of mounts is looked at, by the union as well.
//
// # Probe
//
// Probe says what this machine has, by doing it: in a process of its own in a
// mount namespace of its own, and in a user namespace besides. Nothing is concluded
// from versions, and nothing is left behind.
package kernelbackend
