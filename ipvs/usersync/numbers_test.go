package usersync

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
)

// enums returns the enums of the module's header: name to constants in order.
func enums(t *testing.T) map[string][]string {
	t.Helper()
	text, err := os.ReadFile("../../kmod/ip_vs_user_sync.h")
	if err != nil {
		t.Fatal(err)
	}
	code := regexp.MustCompile(`(?s)/\*.*?\*/`).ReplaceAllString(string(text), "")
	found := map[string][]string{}
	for _, m := range regexp.MustCompile(`(?s)enum (\w+) \{(.*?)\}`).FindAllStringSubmatch(code, -1) {
		for _, name := range regexp.MustCompile(`\w+`).FindAllString(m[2], -1) {
			if !strings.HasPrefix(name, "__") {
				found[m[1]] = append(found[m[1]], name)
			}
		}
	}
	return found
}

// specNames returns the attributes of a set of the netlink specification, in
// order.
func specNames(t *testing.T, set string) []string {
	t.Helper()
	text, err := os.ReadFile("../../kmod/ipvs_sync.yaml")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(text), "\n    name: "+set+"\n")
	if !ok {
		t.Fatalf("no attribute set %s", set)
	}
	rest, _, _ = strings.Cut(rest, "\n  -\n")
	rest, _, _ = strings.Cut(rest, "\noperations:")
	var names []string
	for _, m := range regexp.MustCompile(`(?m)^        name: (\S+)$`).FindAllStringSubmatch(rest, -1) {
		names = append(names, m[1])
	}
	return names
}

// TestNumbers: the module's header, its specification and this package agree.
func TestNumbers(t *testing.T) {
	found := enums(t)
	for enum, want := range map[string]map[string]int{
		"ipvs_sync_cmd": {"CMD_GET": cmdGet, "CMD_CREATE": cmdCreate, "CMD_DELETE": cmdDelete, "CMD_STATS": cmdStats, "CMD_EVENTS": cmdEvents},
		"ipvs_sync_attr": {
			"A_PAD": 1, "A_CONN": attrConn, "A_RESULTS": attrResults, "A_CPU": attrCPU, "A_SEQ": attrSeq, "A_DROPPED": attrDropped, "A_STATS": attrStats,
		},
		"ipvs_sync_conn_attr": {
			"CONN_PAD": 1, "CONN_PROTOCOL": connProtocol, "CONN_CADDR": connCAddr, "CONN_CPORT": connCPort, "CONN_VADDR": connVAddr,
			"CONN_VPORT": connVPort, "CONN_FLAGS": connFlags, "CONN_DADDR": connDAddr, "CONN_DPORT": connDPort, "CONN_STATE": connState,
			"CONN_FWMARK": connFWMark, "CONN_TIMEOUT": connTimeout, "CONN_REMAINING": connRemaining, "CONN_PKTS": connPkts, "CONN_SEQ": connSeq,
			"CONN_PE_NAME": connPEName, "CONN_PE_DATA": connPEData, "CONN_BOUND": connBound, "CONN_KIND": connKind, "CONN_STAMP": connStamp,
			"CONN_COOKIE": connCookie, "CONN_COMMANDED": connCommanded, "CONN_EXPECT_PKTS": connExpectPkts,
		},
		"ipvs_sync_kind": {
			"KIND_NEW": int(KindNew), "KIND_STATE": int(KindState), "KIND_UPDATE": int(KindUpdate), "KIND_ADOPTED": int(KindAdopted), "KIND_EXPIRED": int(KindExpired),
		},
	} {
		if len(found[enum]) != len(want)+1 {
			t.Errorf("enum %s has %d constants, want %d", enum, len(found[enum]), len(want)+1)
		}
		for number, name := range found[enum] {
			if n := want[strings.TrimPrefix(name, "IPVS_SYNC_")]; n != number {
				t.Errorf("%s is %d in the header, %d here", name, number, n)
			}
		}
	}
	for set, enum := range map[string]string{"ipvs-sync": "ipvs_sync_attr", "conn": "ipvs_sync_conn_attr", "stats": "ipvs_sync_stats_attr"} {
		prefix := map[string]string{"ipvs-sync": "A", "conn": "CONN", "stats": "STATS"}[set]
		header := fmt.Sprint(found[enum][1:])
		var spec []string
		for _, name := range specNames(t, set) {
			spec = append(spec, "IPVS_SYNC_"+prefix+"_"+strings.ToUpper(strings.ReplaceAll(name, "-", "_")))
		}
		if fmt.Sprint(spec) != header {
			t.Errorf("set %s of the specification is\n%v, the header has\n%v", set, spec, header)
		}
	}
}
