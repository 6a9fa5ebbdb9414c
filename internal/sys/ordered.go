package sys

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// WriteOut has the data of fd written to the device and waits for that. It may be in
// the cache of the device then, and what is known of it in memory only: see Ordered.
func WriteOut(fd int) error {
	const flags = unix.SYNC_FILE_RANGE_WAIT_BEFORE | unix.SYNC_FILE_RANGE_WRITE | unix.SYNC_FILE_RANGE_WAIT_AFTER
	return retry("sync_file_range", func() error { return unix.SyncFileRange(fd, 0, 0, flags) })
}

// startWriteOut has a range of fd written to the device, and does not wait for it.
func startWriteOut(fd int, off, length int64) {
	_ = unix.SyncFileRange(fd, off, length, unix.SYNC_FILE_RANGE_WRITE) // whoever waits for it hears of errors
}

// Ordered reports whether what WriteOut has written before a rename is there after a
// power cut whenever the rename is. The file system of fd has to put changes in its
// journal in the order in which they are made; among them, before pages count as
// written, the file's size and that its extents are valid; and to flush the device's cache
// before the journal's commit. ext4 (ext4_end_io_end, jbd2_journal_commit_transaction),
// unless it has no journal, and XFS (xfs_end_ioend, xlog_write_iclog) do. btrfs does not:
// extents come after the pages (btrfs_finish_ordered_io).
func Ordered(fd int) bool {
	fs, err := Statfs(fd)
	if err != nil {
		return false
	}
	switch fs.Type {
	case unix.XFS_SUPER_MAGIC:
		return true
	case unix.EXT4_SUPER_MAGIC: // that of ext2 and ext3, too
		return ext4Journals(fd)
	}
	return false
}

// ext4Journals says whether the ext4 of fd has a journal; false when it is not known.
func ext4Journals(fd int) bool {
	st, err := FStat(fd)
	if err != nil {
		return false
	}
	device, err := os.Readlink(fmt.Sprintf("/sys/dev/block/%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev)))
	if err != nil {
		return false
	}
	// The thread that commits the journal, or "<none>".
	task, err := os.ReadFile(filepath.Join("/sys/fs/ext4", filepath.Base(device), "journal_task"))
	return err == nil && strings.Trim(string(task), "0123456789\n") == "" && len(task) > 1
}
