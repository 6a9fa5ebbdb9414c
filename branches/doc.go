// Package branches is an ordered stack of directory trees: which branch
// answers for a name, and which receives a change.
//
// # Terms
//
// A Branch is one directory, opened once; nothing is looked up by an absolute
// path after Open. Index 0 is the top. The upper is branch 0 when it is
// writable; all other branches are lowers and are taken to be immutable while
// they are open.
//
// A Dir is one directory of the merged tree. It has a Part for each branch
// that contributes to it, top first. A part in the upper is found by the
// Dir's own place in the tree (parent and name), because the upper has the
// shape of the merged tree; a part in a lower is found by its path in that
// branch, which a redirect can make different.
//
// # Lookup
//
// Lookup walks the parts of a directory from the top down and stops at the
// first file, whiteout or opaque directory (ovl_lookup in the kernel). The
// result says what was found and where, and for a directory which parts the
// child has. An absolute redirect restarts the walk at the roots of the
// branches below with the redirect's path, a relative one renames the last
// component, as in ovl_check_redirect.
//
// # What is not shown
//
// Names in a branch are opened without crossing mounts: a mount point in a
// branch is an empty directory or file. The upper, the work directory and
// the mountpoint itself are invisible in a lower that contains them.
//
// # Locks
//
// Stack.place orders lookups of upper directories against directory renames:
// a sequence counter like the kernel's rename_lock. Dir.mu protects the place
// and the parts of one directory; it is a leaf but for fdcache's lock, and no
// Dir.mu is taken under another.
package branches
