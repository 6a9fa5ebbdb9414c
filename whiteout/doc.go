// Package whiteout knows how a union records, on disk, that something of a
// lower branch is removed or replaced: the rules and encodings of every
// dialect, and nothing of stacks, nodes or FUSE.
//
// # Terms
//
// A whiteout says that a name is deleted in the branches below. An opaque
// directory hides all that is below it. A redirect says at which path in the
// branches below the lower content of a directory is to be found.
//
// # Dialects on disk
//
//	            whiteout of NAME                   opaque directory            redirect
//	aufs        regular file .wh.NAME              empty file .wh..wh..opq     .wh..wh..opq, whose content is the path
//	overlay     character device 0:0 called NAME   xattr overlay.opaque = y    xattr overlay.redirect
//	xattr       empty file NAME with the xattr     xattr overlay.opaque = y    xattr overlay.redirect
//	            overlay.whiteout, in a directory
//	            with overlay.opaque = x
//
// The xattrs live in trusted. or, without privileges, in user. (overlayfs's
// userxattr). fuse-overlayfs's user.fuseoverlayfs.opaque is read too.
// All of this is read in every branch; only one dialect is written per upper
// (Format), and the choice is recorded in the upper's root: in the xattr
// layerfs.format, or in the file .wh..wh.layerfs where xattrs are impossible.
//
// An AUFS redirect is an opaque mark with content, so that AUFS and
// fuse-overlayfs, which know no redirects, show the directory without its
// lower content rather than with the wrong one.
//
// # Rules
//
//   - In one branch an entry beats a whiteout of its own name (the whiteout
//     still hides the branches below: a directory with one is opaque).
//   - A whiteout on the lowest branch hides nothing and is never shown.
//   - Names that start with .wh. are never shown and never made by users.
package whiteout
