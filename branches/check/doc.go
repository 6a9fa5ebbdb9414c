// Package check examines a branch that nobody has mounted, as a file system
// checker would, and mends what it can.
//
// # Findings
//
// Each has a name that never changes. "Shows" is what a user of the union sees;
// "repair" is what Options.Repair does. What is removed are names that the
// union reserves, whiteouts and records, never what could be a user's.
//
// In directories:
//
//	whiteout-beside-entry      Both NAME and .wh.NAME are there, left by an interrupted change or by an
//	                           archive. Shows NAME, a directory as an opaque one; AUFS fails with EIO.
//	                           Repair: a directory is marked opaque, then the whiteout removed.
//	whiteout-in-opaque         A whiteout where nothing below can show. Shows nothing; kernel overlay
//	                           lists a name that is not there. Repair: removed.
//	xattr-whiteout-not-marked  An empty file with overlay.whiteout in a directory without
//	                           overlay.opaque=x: a copy lost the mark. Shows an empty file where one was
//	                           deleted. Repair: the directory is marked; in an opaque one the file goes.
//	mixed-dialects             A whiteout or mark of another dialect than the one recorded. Shows the same;
//	                           kernel overlay, AUFS and a mount that changes the branch may not take it so.
//	                           Repair: rewritten in the recorded format.
//	bad-whiteout               .wh.NAME is no regular file, or has content. It is hidden, and maybe
//	                           somebody's data under a name that no union shows. No repair.
//	bad-redirect               A redirect that is no path within the union. Shows the directory without it.
//	                           No repair: what it should say is not known.
//	dangling-redirect          (needs Lowers) A redirect to where the lowers have no directory. Shows the
//	                           directory without lower content. Repair: marked opaque, which shows the
//	                           same and stays so should the path come into being.
//	needless-whiteout          (needs Lowers) No lower has the name. Shows nothing. Repair: removed.
//	metacopy                   A file of kernel overlay's metacopy=on, whose data is in a lower. Shows
//	                           zeros. No repair: copy it with kernel overlay.
//	unreadable                 It cannot be read, so what is in it is not checked. No repair.
//
// Reserved names:
//
//	leftover-temporary         A temporary of layerfs (.wh..wh.convert, .wh..wh..opq.tmp, .wh..wh.probe, what
//	                           is in WORKDIR/work) or of AUFS (.wh..wh.NAME.XXXX, .wh..wh.orph/…).
//	                           Shows nothing. Repair: removed.
//	aufs-link                  A pseudo-link of AUFS (.wh..wh.plnk/INO.INO) that was not flushed. Shows
//	                           nothing. Repair: removed when the file has another name here. The only
//	                           name of a file is kept: it may hold changes that the lower names of that
//	                           file never got.
//	aufs-dirren                A directory rename of AUFS's dirren, which nothing else reads. Shows the
//	                           directory without its lower content. No repair.
//	unknown-name               A reserved name that nothing here knows. Hidden. No repair.
//
// Records:
//
//	format-record              The record of the dialect is broken, or there are two that differ. A broken
//	                           one keeps writable mounts away. Repair: of two the one that counts stays.
//	conversion-under-way       `layerfs convert` was interrupted. Shows all rightly, writable mounts refuse.
//	                           No repair: convert again, to either dialect.
//	link-record                What a file or the index says about hard links across copy-up is broken: no
//	                           record at all, a file that the index does not have or has another for, a count
//	                           left frozen by a crash, files with records in a branch whose root does not say
//	                           so. Shows wrong link counts, or names of one file as several.
//	                           Repair: entered, counted anew or dropped. A deletion that was
//	                           announced only the next mount can settle.
//	stray-link-copy            A copy in the link index or .wh..wh.plnk that no name of the union leads to.
//	                           Shows nothing, holds space. Repair: removed.
//	stub-damaged               A stub of which it cannot be told what its device is. Shows a file that
//	                           cannot be read (EIO). No repair.
//	stub-lost                  A stub whose device is not there, or is another file's. Shows the same.
//	                           No repair.
//	stub-origin                The lower file below a stub's device is not where it was. A mount finds it at
//	                           its path in any branch below; if it has another path there, EIO. With
//	                           Options.Rebind the pool is told, also of a file that has moved, if there is one
//	                           of its name, size and time only.
//	stub-pool                  The private pool cannot be opened. No repair here: see layerfs pool check.
//	interrupted-settle         A stub that was about to become a plain file. The next mount restores its text.
//	unfinished-device          A device of a file that was being made or unlinked. Holds space. Repair:
//	                           removed.
//	orphan-device              A device that no stub names, whose stub may have been moved away. Holds space.
//	                           No repair.
//	interrupted-rename         A rename that takes two steps was killed between them. Shows both names.
//	                           Repair: the second step is taken, as the next mount would.
//	live-mark                  The last mount did not end cleanly. Repair: removed, once all records are
//	                           in order; else the next mount puts them in order.
//	volatile-mark              A volatile mount did not end cleanly: changes may be missing that cannot be
//	                           told from here. Mounts refuse. No repair: see layerfs(8), volatile.
//
// Without Lowers and without a known work directory what depends on them is not
// looked at; Report.Notes says so.
//
// # Order
//
// Repairs go from the leaves to the root and keep the rules of package
// convert, whose steps most of them are; so a crash in the middle leaves what
// the union shows as it was, and a second run finds the rest. Directories keep
// their times.
package check
