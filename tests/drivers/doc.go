// Package drivers is the conformance suite of the drivers of the store, and of the
// store on each of them: every test runs on every driver that this user can have, and
// what must not depend on the driver is compared with what the first one gave.
package drivers
