package main

import "strings"

// splitOptions splits an option string at its commas. A comma is part of an
// option after a backslash, which is then removed, and inside the quotes of
// a context option. Other escapes are left for the option's own syntax.
// Empty options are dropped.
func splitOptions(s string) []string {
	var out []string
	for s != "" {
		var token string
		token, s = nextOption(s)
		if token != "" {
			out = append(out, token)
		}
	}
	return out
}

func nextOption(s string) (token, rest string) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == ',':
			return b.String(), s[i+1:]
		case c == '\\' && i+1 < len(s):
			i++
			if s[i] != ',' {
				b.WriteByte(c)
			}
			b.WriteByte(s[i])
		case c == '"' && strings.HasSuffix(b.String(), "context="):
			if end := strings.IndexByte(s[i+1:], '"'); end >= 0 {
				b.WriteString(s[i : i+end+2])
				i += end + 1
				continue
			}
			b.WriteByte(c)
		default:
			b.WriteByte(c)
		}
	}
	return b.String(), ""
}

// splitPaths splits a list of directories at its colons, except escaped
// ones, and drops empty elements. The elements are still escaped.
func splitPaths(s string) []string {
	var out []string
	start := 0
	for i := 0; i <= len(s); i++ {
		if i < len(s) && s[i] == '\\' {
			i++
			continue
		}
		if i >= len(s) || s[i] == ':' {
			if start < min(i, len(s)) {
				out = append(out, s[start:min(i, len(s))])
			}
			start = i + 1
		}
	}
	if start < len(s) {
		out = append(out, s[start:])
	}
	return out
}

// unescape removes the backslashes before the characters that need one.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+1 < len(s) && strings.IndexByte(`\:,`, s[i+1]) >= 0 {
			i++
		}
		b.WriteByte(s[i])
	}
	return b.String()
}
