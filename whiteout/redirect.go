package whiteout

// CleanRedirect returns a redirect if it is one of the two forms that are
// followed, else "".
func CleanRedirect(r string) string { return cleanRedirect(r) }
