// Package aufs tests what AUFS's users know: every option and policy, each by a
// sentence of aufs(5), and branches that come and go on a live mount.
package aufs
