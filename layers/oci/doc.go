// Package oci writes what a union's upper changes as an OCI image layer, and
// unpacks such layers into branches.
//
// The format is image-spec's layer.md: a tar whose entries are added to or put
// in place of those of the layers below, in which a file ".wh.NAME" deletes NAME
// and a file ".wh..wh..opq" everything that the layers below have in its directory.
//
// # The canonical layer
//
// One tree over given lowers has one layer, byte for byte, however the tree
// came about and in whichever dialect its whiteouts lie:
//
//   - An entry is in it when a comparison of the merged trees with and without
//     the uppers finds a difference (branches.Comparison), and every directory
//     on the way to one. A file that was copied up and is as it was is not.
//   - What is gone has a whiteout of its own. ".wh..wh..opq" stands for them
//     only where a lower has the directory and all that it has there, more than
//     one name, is gone; never for the root, which kernel overlay would ignore.
//   - Entries are in order of their names, parents first; the whiteouts of a
//     directory come before its other entries, since layer.md wants them
//     before what they might hide. The root is "./", other names have no "./".
//   - Of the names of one file the first carries the content, the others are
//     hard links to it. A renamed directory is there in full.
//   - Times are mtimes, in PAX with nanoseconds when they are not whole
//     seconds. Owners are numbers. Extended attributes, ACLs and capabilities
//     among them, are PAX records SCHILY.xattr.NAME; labels of a host's policy
//     and the records of unions are left out. Holes are written as zeros.
//   - Sockets cannot be in a tar; they are left out, with a warning.
//
// # Unpacking
//
// Apply takes any layer, hostile ones too (reliability.md, 4.2):
//
//   - Every name is opened beneath the directory, through no symbolic link and
//     across no mount. A file is built under a reserved name and moved to its
//     place when it is complete, so that none is ever there in part.
//   - An absolute name is taken from the root of the layer. A name with "..",
//     through something that is not a directory, or that no file system takes is
//     refused; so are a root that is no directory, a hard link to what is not
//     there, and a whiteout of "", "." or "..".
//   - A whiteout counts for what was there before, wherever it stands in the
//     tar: beside an entry of its name it makes a directory opaque and is
//     nothing for a file. Other ".wh..wh." names are AUFS's own and skipped,
//     but for the files in ".wh..wh.plnk" that hard links refer to.
//   - The spec forbids an entry of the same path twice; here the last one
//     wins, as in every tar. A directory over a directory replaces its
//     attributes and keeps what is in it, anything else replaces all.
//   - A character device 0:0 is overlay's whiteout and taken for one.
//   - Where the directory is the whole tree and no branch (Options.Whole), what
//     the layer deletes is removed, and nothing is recorded.
//   - Attributes of directories are set at the end, with nothing left to
//     change in them. What this user may not do (owners, devices, some
//     attributes) is left out with a warning; set-user-id stays only with the owner.
//   - The tar must have its end mark and the compressed stream its checksum:
//     a layer that was cut off is refused.
//
// What Apply has made of a layer by Diff, Diff makes into the same bytes.
package oci
