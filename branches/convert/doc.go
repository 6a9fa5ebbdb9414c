// Package convert rewrites the whiteouts of an upper in another dialect, in
// place.
//
// # Views and steps
//
// A View is what one directory of the branch records: what is deleted in it
// and whether it is opaque or redirected, in whatever dialects, as the union
// reads them. Steps says what has to be done to a view so that it says the
// same in one format. Package check finds faults by the same steps: a branch
// is in order when there is nothing to do for its recorded format.
//
// # Order
//
// Every dialect is read in every branch, and two records of one thing say no
// more than one. So a branch shows the same tree before and after each single
// system call when these rules are kept:
//
//   - A new mark is there, whole, before the old one goes. What takes more than
//     one call to make is made under a reserved name and renamed.
//   - A directory inside is finished before its parent: where a whiteout beside
//     a directory makes it opaque, the directory says so itself before that
//     whiteout goes.
//   - An opaque directory loses its whiteouts before anything else. They hide
//     nothing, and overlay.opaque cannot say x, which whiteouts with an xattr
//     need, and y at once.
//   - A directory says overlay.opaque=x before the first such whiteout is put
//     in it, and until the last has gone; an empty file that must stay visible
//     loses a whiteout's xattr before.
//   - A redirect that is written to a file is on disk before the xattr goes: file
//     systems keep their own records in order, not what is in files.
//
// A conversion that was interrupted is completed by running it again; nothing
// but the branch itself says how far it has come.
//
// # The record
//
// Reading a half-converted branch is right; writing to it may not be, since a
// mount expects whiteouts of its own dialect where it takes them away. So the
// first thing written is the format record "converting-to-DIALECT NAMESPACE",
// which is no format that a writable mount understands: it refuses the upper
// (exit 6) until the conversion is complete. A read-only mount, and a stack
// that has the branch as a lower, show it as ever. The last thing written is
// the record of the new format.
//
// # What stays
//
// Owner, mode and times of directories stay, but for the times of the one
// directory at which a conversion is killed. Of other records only the xattr
// namespace may change (overlay's own origin, impure and nlink, which concern
// the kernel alone, stay). In user. there are no records on symbolic links,
// pipes and devices; a mount keeps those in its work directory, where the
// conversion does not put them: after one from trusted. to user. such files
// show other inode numbers, and hard links of such files part ways.
package convert
