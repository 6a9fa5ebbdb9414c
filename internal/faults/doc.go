// Package faults is how a test makes one system call of a daemon fail, or be
// the last thing that the daemon comes to.
//
// A Plan lies in a file that test and daemon map. The daemon counts the system
// calls of internal/sys while the plan is armed, and does to one of them what
// the plan says. Only binaries built with the tag "faults" look for a plan, in
// the file that $LAYERFS_FAULTS names; in others the hook is an empty function.
package faults
