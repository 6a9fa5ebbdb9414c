// Package kernel tests what the kernel does for layerfs: the overlay backend of
// `layerfs mount`, which of the two backends is taken, uppers that go from one to
// the other, and `layerfs probe`.
//
// An ordinary user's tests run in a user and a mount namespace of their own, in
// which he is root: there the records lie in user. attributes.
package kernel
