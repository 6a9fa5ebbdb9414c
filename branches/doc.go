// Package branches is an ordered stack of directory trees: which branch
// answers for a name, and which receives a change.
//
// # Terms
//
// A Branch is one directory, opened once; nothing is looked up by an absolute
// path after Open. Index 0 is the top. A branch with a Work is writable; the
// topmost of those is the upper. All other branches are lowers and are taken
// to be immutable while they are open.
//
// A Dir is one directory of the merged tree. It has a Part for each branch
// that contributes to it, top first. A part in a writable branch is found by the
// Dir's own place in the tree (parent and name), because what is changed there
// has the shape of the merged tree: only in such a part can names be made,
// renamed and removed. A part in a lower, and one in a writable branch to which
// a redirect leads, is found by its path in that branch, and is only read.
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
// # Several writable branches
//
// A change is made in one branch, and for it everything below that branch is
// lower. Which one is a matter of policy (policy.go, the rules of aufs(5)), within
// two limits: nothing above it may hide what is made, so a name goes at or
// above the branch whose whiteout hides it (Resolution.Limit), and a directory
// cannot be made below the branch where its own walk ended (Dir.Floor). What was
// found stays where it is if it can be changed there (Resolution.Home).
//
// A directory with content in several branches is renamed in the upper, with a
// redirect; its parts below stay where they are and are only read from then on.
// So the only redirects that a running union makes are in its upper, and
// Dir.LowerPath, the path below the upper, is all that they need.
//
// # Changes of the stack itself
//
// Plan, Commit and Drop (live.go) change the branches of an open stack. Nobody
// else may use it between Commit and the refresh of every Dir; package fs sees to
// that with its gate.
//
// # What is not shown
//
// Names in a branch are opened without crossing mounts: a mount point in a
// branch is an empty directory or file. Writable branches, the work directory and
// the mountpoint itself are invisible in a lower that contains them.
//
// # Locks
//
// Stack.place orders lookups of directories at their places against directory
// renames: a sequence counter like the kernel's rename_lock. Dir.mu protects the
// place and the parts of one directory; it is a leaf but for fdcache's lock, and
// no Dir.mu is taken under another. chooser.mu is a leaf.
package branches
