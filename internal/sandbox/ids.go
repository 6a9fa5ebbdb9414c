package sandbox

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"strconv"
	"strings"
)

// span is a range of ids: inside the namespace, outside it, how many.
type span struct{ inside, outside, n int }

// give maps ids into the user namespace of the process pid: root to the caller
// and, if there are ranges, 1 and up to these.
func (id Identity) give(pid int) error {
	uids := subordinate("/etc/subuid", os.Geteuid())
	gids := subordinate("/etc/subgid", os.Geteuid())
	if id.Ranges && uids != nil && gids != nil {
		err := errors.Join(mapByHelper("newuidmap", pid, os.Geteuid(), uids), mapByHelper("newgidmap", pid, os.Getegid(), gids))
		if err == nil {
			return nil
		}
		fmt.Fprintf(os.Stderr, "layerfs: a single id is to be had: %s\n", strings.ReplaceAll(err.Error(), "\n", "; "))
	}
	return mapOne(pid)
}

// subordinate reads the ranges that file gives to a user, by name or number.
func subordinate(file string, uid int) []span {
	names := []string{strconv.Itoa(uid)}
	if u, err := user.LookupId(names[0]); err == nil {
		names = append(names, u.Username)
	}
	f, err := os.Open(file)
	if err != nil {
		return nil
	}
	defer f.Close()
	var list []span
	next := 1
	for lines := bufio.NewScanner(f); lines.Scan(); {
		s, ok := parseSpan(lines.Text(), names)
		if ok {
			s.inside = next
			next += s.n
			list = append(list, s)
		}
	}
	return list
}

// parseSpan reads OWNER:FIRST:COUNT.
func parseSpan(line string, owners []string) (s span, ok bool) {
	f := strings.Split(strings.TrimSpace(line), ":")
	if len(f) != 3 {
		return s, false
	}
	for _, o := range owners {
		if f[0] == o {
			var err1, err2 error
			s.outside, err1 = strconv.Atoi(f[1])
			s.n, err2 = strconv.Atoi(f[2])
			return s, err1 == nil && err2 == nil && s.outside > 0 && s.n > 0
		}
	}
	return s, false
}

// mapByHelper has newuidmap or newgidmap, which may map ids that are not the
// caller's own, map root to him and list above that.
func mapByHelper(helper string, pid, own int, list []span) error {
	args := []string{strconv.Itoa(pid), "0", strconv.Itoa(own), "1"}
	for _, s := range list {
		args = append(args, strconv.Itoa(s.inside), strconv.Itoa(s.outside), strconv.Itoa(s.n))
	}
	out, err := exec.Command(helper, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w %s", err, strings.TrimSpace(string(out)))
	}
	return nil
}

// mapOne maps root to the caller, which the kernel lets everybody do.
func mapOne(pid int) error {
	for _, w := range []struct{ file, text string }{
		{"uid_map", fmt.Sprintf("0 %d 1\n", os.Geteuid())},
		{"setgroups", "deny"}, // user_namespaces(7): or no gid_map
		{"gid_map", fmt.Sprintf("0 %d 1\n", os.Getegid())},
	} {
		path := fmt.Sprintf("/proc/%d/%s", pid, w.file)
		err := os.WriteFile(path, []byte(w.text), 0)
		if err != nil && !written(path) {
			return fmt.Errorf("mapping ids: %w", err)
		}
	}
	return nil
}

// written reports whether an id map has been written already, which can be done once.
func written(path string) bool {
	data, err := os.ReadFile(path)
	return err == nil && strings.HasSuffix(path, "id_map") && len(data) > 0
}
