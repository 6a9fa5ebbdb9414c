// Package parity does the same to a layerfs mount and to an oracle, and
// requires the same answer at each step and the same tree at the end.
//
// As root the oracle is the kernel's overlay (redirect_dir=on, index=on,
// xino=on) over the same lowers, which are uppers of earlier histories, made by
// either of the two. In a user namespace, where overlay breaks hard links and
// cannot rename directories, it is a plain directory with the merged content:
// what a union should be like to its users.
//
// A history is a seed. LAYERFS_TEST_SEED repeats one, LAYERFS_TEST_OPS says how
// many operations are made (in total, 1,000,000 for the long form). What may
// differ is in the table of excuses, with the reason.
package parity
