package deploy

import (
	"bytes"
	"crypto/sha256"
	"debug/buildinfo"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime/debug"
	"strconv"
	"strings"
	"testing"

	"github.com/l4fwd/l4fwd/config"
	"github.com/l4fwd/l4fwd/internal/testbed"
)

func TestMain(m *testing.M) { testbed.Main(m) }

// run returns what a command prints, which must succeed.
func run(t *testing.T, env []string, name string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Env = append(os.Environ(), env...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

func TestExamples(t *testing.T) {
	files, err := filepath.Glob("examples/*.yaml")
	if err != nil || len(files) < 4 {
		t.Fatalf("%d examples: %v", len(files), err)
	}
	for _, f := range files {
		c, err := config.Load(f)
		if err != nil {
			t.Error(err)
			continue
		}
		for _, w := range c.Warnings() {
			t.Errorf("%s: %s", f, w)
		}
	}
}

// TestUnit has systemd itself read the unit. That l4fwd lives within its limits is
// TestUnit's of internal/e2e.
func TestUnit(t *testing.T) {
	path, err := testbed.Build(t.Context(), "./cmd/l4fwd", false)
	if err != nil {
		t.Fatal(err)
	}
	unit, err := os.ReadFile("systemd/l4fwd.service")
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "l4fwd.service")
	// systemd looks whether what the unit starts is there.
	unit = bytes.ReplaceAll(unit, []byte("/usr/bin/l4fwd"), []byte(path))
	if err := os.WriteFile(file, unit, 0o644); err != nil {
		t.Fatal(err)
	}
	if out := run(t, []string{"SYSTEMD_LOG_LEVEL=warning"}, "systemd-analyze", "verify", "--man=no", file); strings.Contains(out, "l4fwd.service:") {
		t.Errorf("systemd says:\n%s", out)
	}
}

// TestUnitGivesUp: a wrong configuration ends the main process with a status after which
// systemd starts nothing again. That of a command before it would not count
// (systemd.service(5), RestartPreventExitStatus=).
func TestUnitGivesUp(t *testing.T) {
	path, err := testbed.Build(t.Context(), "./cmd/l4fwd", false)
	if err != nil {
		t.Fatal(err)
	}
	unit, err := os.ReadFile("systemd/l4fwd.service")
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "l4fwd.yaml")
	if err := os.WriteFile(file, []byte("interfaces: [{colour: red}]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	run := strings.NewReplacer("/usr/bin/l4fwd", path, "/etc/l4fwd/l4fwd.yaml", file)
	status := ""
	for line := range strings.Lines(string(unit)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		switch words := strings.Fields(run.Replace(value)); key {
		case "ExecStartPre", "ExecCondition":
			t.Errorf("it may fail before the main process: %s", line)
		case "ExecStart":
			var exit *exec.ExitError
			if out, err := exec.CommandContext(t.Context(), words[0], words[1:]...).CombinedOutput(); !errors.As(err, &exit) || !strings.Contains(string(out), "colour") {
				t.Fatalf("%v: %v\n%s", words, err, out)
			}
			status = strconv.Itoa(exit.ExitCode())
		case "RestartPreventExitStatus":
			if status == "" || value != status {
				t.Errorf("it ends with status %q; the unit gives up at %s", status, value)
			}
		}
	}
	if status == "" {
		t.Error("the unit starts nothing")
	}
}

// setting is what a section of the unit says of a key, last; "" if nothing.
func setting(t *testing.T, section, key string) (value string) {
	t.Helper()
	unit, err := os.ReadFile("systemd/l4fwd.service")
	if err != nil {
		t.Fatal(err)
	}
	in := ""
	for line := range strings.Lines(string(unit)) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "[") {
			in = strings.Trim(line, "[]")
		}
		if v, ok := strings.CutPrefix(line, key+"="); ok && in == section {
			value = v
		}
	}
	return value
}

// TestUnitComesBack: whatever ends l4fwd, but a wrong configuration, it is started again.
func TestUnitComesBack(t *testing.T) {
	for _, row := range []struct{ section, key, want string }{
		{"Service", "Restart", "always"},
		{"Service", "RestartSec", "1"}, // as docs/install.md says
		{"Unit", "StartLimitIntervalSec", "0"},
	} {
		if got := setting(t, row.section, row.key); got != row.want {
			t.Errorf("[%s] %s=%s, want %s", row.section, row.key, got, row.want)
		}
	}
	// A thread for each worker, and for each of 128 commands of checks, with 20 processes.
	if n, err := strconv.Atoi(setting(t, "Service", "TasksMax")); err != nil || n < 255+128*(1+20) {
		t.Errorf("TasksMax is %d: %v", n, err)
	}
}

// TestDeb makes the package twice, looks whether both are the same, unpacks it and
// runs what is in it.
func TestDeb(t *testing.T) {
	path, err := testbed.Build(t.Context(), "./cmd/l4fwd", false)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	man := filepath.Join(dir, "man")
	run(t, []string{"SOURCE_DATE_EPOCH=1700000000"}, path, "man", man)
	if err := os.WriteFile(filepath.Join(man, "l4fwd.yaml.5"), []byte(".TH L4FWD.YAML 5\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	var sums [2][sha256.Size]byte
	var deb string
	for i := range sums {
		out := filepath.Join(dir, string(rune('a'+i)))
		run(t, []string{"SOURCE_DATE_EPOCH=1700000000", "COMPRESSION=none"}, "debian/build", path, man, out)
		made, err := filepath.Glob(filepath.Join(out, "l4fwd_*.deb"))
		if err != nil || len(made) != 1 {
			t.Fatalf("made %q: %v", made, err)
		}
		deb = made[0]
		b, err := os.ReadFile(deb)
		if err != nil {
			t.Fatal(err)
		}
		sums[i] = sha256.Sum256(b)
	}
	if sums[0] != sums[1] {
		t.Error("two packages of one revision differ")
	}
	root := filepath.Join(dir, "root")
	run(t, nil, "dpkg-deb", "--extract", deb, root)
	for _, f := range []string{
		"etc/l4fwd", "lib/systemd/system/l4fwd.service", "usr/share/man/man8/l4fwd-run.8.gz",
		"usr/share/man/man5/l4fwd.yaml.5.gz", "usr/share/bash-completion/completions/l4fwd",
		"usr/share/doc/l4fwd/copyright", "usr/share/doc/l4fwd/docs/drops.md", "usr/share/doc/l4fwd/docs/benchmarks/README.md", "usr/share/doc/l4fwd/changelog.gz",
	} {
		if _, err := os.Stat(filepath.Join(root, f)); err != nil {
			t.Error(err)
		}
	}
	installed := filepath.Join(root, "usr/bin/l4fwd")
	terms := run(t, nil, "zcat", filepath.Join(root, "usr/share/doc/l4fwd/licences.gz"))
	built, err := buildinfo.ReadFile(installed)
	if err != nil || len(built.Deps) < 10 {
		t.Fatalf("%v: %d modules", err, len(built.Deps))
	}
	for _, m := range append(built.Deps, &debug.Module{Path: "Go go1"}) {
		if !regexp.MustCompile("(?m)^" + regexp.QuoteMeta(strings.TrimSuffix(m.Path+"@"+m.Version, "@"))).MatchString(terms) {
			t.Errorf("no licence of %s", m.Path)
		}
	}
	for _, example := range []string{"full-nat", "tunnel"} {
		run(t, nil, installed, "check", "-c", filepath.Join(root, "usr/share/doc/l4fwd/examples", example+".yaml"))
	}
	control := run(t, nil, "dpkg-deb", "--info", deb, "control")
	for _, want := range []string{`(?m)^Version: [0-9][^@]*$`, `(?m)^Architecture: [a-z0-9]+$`, `(?m)^Installed-Size: [0-9]+$`} {
		if !regexp.MustCompile(want).MatchString(control) {
			t.Errorf("no %s in\n%s", want, control)
		}
	}
	for _, script := range []string{"postinst", "prerm", "postrm"} {
		run(t, nil, "sh", "-n", filepath.Join("debian", script))
	}
	run(t, nil, "sh", filepath.Join("debian", "postinst"), "configure", "") // with no systemd there is nothing to do
}
