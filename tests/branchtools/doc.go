// Package branchtools runs `layerfs check` and `layerfs convert` on uppers that
// real mounts have written, and looks through real mounts at what they make of
// them.
//
// TestConvert takes random histories through all pairs of dialects.
// TestConvertKilled kills a conversion before each of its system calls that
// change something: the branch must show the same tree at once, and must be
// converted by a second run with nothing left over. TestRepairKilled does so
// with a repair. Both need a binary with the tag "faults", see tests/crash.
package branchtools
