// Package security attacks a mount: from inside it, from its branches, and
// through what lies in them. Each test is named after the control that it
// checks; what has happened to other unions is told with it.
//
// The rest of the list is tested where the subject is: reserved names and
// attributes in tests/union, set-user-id after writes in tests, the control
// channel in tests (TestChannelIsPrivate), parsers by the fuzz targets of
// their packages.
package security
