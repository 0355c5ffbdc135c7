// SPDX-License-Identifier: Apache-2.0

package journal

import (
	"errors"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestEachMessageIsOneLineWithItsPriority(t *testing.T) {
	var out strings.Builder
	log := To(&out)
	log.Err("%v", errors.Join(errors.New("one"), errors.New("two")))
	log.Warning("look at %s", "this")
	log.Info("done")
	if want := "<3>one; two\n<4>look at this\n<6>done\n"; out.String() != want {
		t.Errorf("written is %q, want %q", out.String(), want)
	}
}

func TestTheJournalIsToldWhatAMessageIsAbout(t *testing.T) {
	var got []string
	log := &Log{emit: func(about *About, priority int, text string) error {
		got = append(got, entry(about, "fdbridged", priority, text))
		return nil
	}}
	log.ErrOf(About{Kind: Lost, Unit: "a.service", Session: "fdbridge.a.service", FD: "x\ny=1"}, "gone: %s", "a\nb")
	log.Warning("look")
	log.Info("done")
	want := []string{
		"MESSAGE=gone: a; b\nMESSAGE_ID=86fda19c240843d1ad6167751b0dd165\nPRIORITY=3\nSYSLOG_IDENTIFIER=fdbridged\n" +
			"UNIT=a.service\nOBJECT_SYSTEMD_UNIT=a.service\nFDBRIDGE_SESSION=fdbridge.a.service\nFDBRIDGE_FD=x; y=1\n",
		"MESSAGE=look\nMESSAGE_ID=3c072120b35d4e0fa5f2e8ff5aa7bbe2\nPRIORITY=4\nSYSLOG_IDENTIFIER=fdbridged\n",
		"MESSAGE=done\nMESSAGE_ID=3d854a02e03a4b068e6b276fef51738c\nPRIORITY=6\nSYSLOG_IDENTIFIER=fdbridged\n",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("entries (-want +got):\n%s", diff)
	}
}

// Each kind has a line in the manual and an entry in the catalogue.
func TestTheManualAndTheCatalogueHaveAllKinds(t *testing.T) {
	ids := func(file, pattern string) (list []string) {
		t.Helper()
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, match := range regexp.MustCompile(pattern).FindAllStringSubmatch(string(data), -1) {
			list = append(list, match[1])
		}
		return list
	}
	const id = "([0-9a-f]{32})"
	want := ids("about.go", ` Kind = "`+id)
	for file, pattern := range map[string]string{"../../contrib/man/fdbridge.7": `\.It Li ` + id, "../../contrib/fdbridge.catalog": "(?m)^-- " + id} {
		if diff := cmp.Diff(want, ids(file, pattern)); diff != "" || len(want) == 0 {
			t.Errorf("%s (-program +file):\n%s", file, diff)
		}
	}
}
