// Package fs presents a stack of branches as one POSIX tree over FUSE.
//
// # Concepts
//
// A node is one inode of the merged tree, known to the kernel by a node id
// that is never reused. All names of an inode are one node, so that size,
// link count and cached pages are one. A node's file lies in a lower branch
// until the first change, which copies it up to a writable branch, its home; from
// then on all its handles, also those opened before, use the copy. Nodes live as
// long as the kernel remembers them, or something in them.
//
// Identity: an inode of a branch is known by one number, made of the branch's
// number and the inode number there (FS.identity). It is what stat shows. A
// merged directory has the identity of its topmost lower part
// (branches.Resolution.Origin), a copied-up file keeps the number of the file
// that it was copied from.
//
// # Order on disk
//
// Whatever is visible is changed by one system call. A copy is built in the
// work directory, written out or synced there so that a power cut leaves none without its
// content (syncCopy), and renamed into place. A whiteout is there before, or at
// the same instant as, the removal that it records, and goes after its
// replacement is in place. A directory that replaces something is opaque
// before it is renamed in, one that leaves its place has its redirect before.
// So a SIGKILL leaves every name as it was before or as it is after. What takes
// two system calls is noted before the first, and the next mount takes the
// second (recover.go): a rename in the xattr dialect, a change of how many links
// a file shows. tests/crash kills the daemon at each of them.
//
// A change that fails has not happened: what can fail comes before the call that
// makes it visible, and is undone; what comes behind that call may fail without
// harm, or is tried again.
//
// # Several writable branches
//
// Each change is made in one of them, as if that were the only upper: its
// whiteouts, its work directory, its link index. Which one is settled before the
// directories are locked, because parents may have to be made there, and looked at
// again after: an answer that has changed means to begin anew (put, remove,
// rename). A file leaves its home only for a branch above, when it gets a name
// that something there would hide; who writes its data then holds node.copyMu
// for reading.
//
// # Files that were copied up by blocks
//
// internal/stub says what they are. Here such a file is a node like any other:
// its home has the stub, on which everything is done that concerns names, owner,
// mode, attributes and times. Only the backing is another: it has the descriptor
// of the stub and, from the first use of the content on, the open device
// (stubFile, blockFile), which all backings of the file share. The size is the
// device's (FS.complete). A change of the content sets the stub's modification
// time and takes file capabilities away, as the kernel does for other files.
//
// A device is open while a backing uses it and for a moment after; a pool as long
// as a device is open. Both are looked after by one goroutine (blockFiles.work),
// which also removes devices: when the last backing of a stub that has no name
// any more is closed. What fails with stubs and pools is kept for Status (trouble).
//
// A settle (settle.go) copies the content into the stub while others write, notes
// what they write (dirt), and makes the file plain with copyMu in hand. Redirected
// directories become plain with the gate shut (settledirs.go), and what is known of
// them in memory is looked up again as after a change of the branches.
//
// # Changes of the branches
//
// Every request is inside the gate. A change of the branches (live.go) shuts it,
// has all directories looked up again that the changed branches concern, gives up
// nodes whose names lead elsewhere now, opens the gate and then tells the kernel
// which names, listings and pages are out of date. Between those two moments the
// kernel may ask for a node that was given up: ESTALE has it look the path up
// again. No path is resolved meanwhile that could lead through the mount itself.
//
// # What is open
//
// Unless it is asked to (Options.Opens), the kernel opens files and directories
// without telling us, and does not say when they are closed. Whatever a request
// concerns may be open, therefore: the file of a node whose last name goes stays
// open until the kernel forgets the node, and other files that were read or
// written stay open for a moment (recents). Who reads a directory is not known
// either: all read one listing, by cookies that hold (listing).
//
// # What the kernel may cache
//
// Lowers do not change while mounted, and the upper changes through the mount
// only: entries, attributes, absence, pages and directories are kept without
// end (unless timeout=0, or others may change the branches: Options.Outside, and
// watch.go for those who want to be told). The daemon never changes a file's pages behind the
// kernel, since a copy-up changes no byte; what it does change by itself (set-user-id
// bits that a write clears) it announces before it answers.
//
// # Lock order, outermost first
//
//	FS.changeMu                 changes of the branches
//	the gate                    shut by them, entered by requests
//	FS.renameMu                 renames from one directory to another
//	  node.copyMu               the whole copy-up of a node; descendant before ancestor
//	      dirNode.mu            names in a directory; ancestor before descendant
//	        dirNode.listMu      its listing
//	        node.mu             names, state and open file of a node; two in the order of their ids
//	          recents.mu        which tries the mu of other nodes, but never waits for it
//	          ahead.mu, then branches' locks, table.mu, listings.mu    leaves
//	          stubFile.mu                 a stub's device being opened
//	            blockFiles.adopting, blockFile.size
//	              pool.mu, pools.mu, blockFiles.mu      leaves, but for the pool's own process
//
// renameMu and copyMu are never wanted by a holder of dirNode.mu or node.mu.
// Only node.copyMu is held while data is copied, and nothing is held across
// a notification of pages or entries. The pool process may be asked with node.mu
// and dirNode.mu in hand (a size, that a name is going); it never asks back for
// anything that needs them.
package fs
