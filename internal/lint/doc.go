// Package lint holds tests about the source itself: that packages import only
// what the plan of the house allows, and that raw system calls stay in one
// room. It has no code of its own.
package lint
