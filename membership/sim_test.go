package membership

import (
	"cmp"
	"flag"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// go test ./membership -run TestSimulation -sim.profile lossy -sim.seed 17
// runs one world again exactly; -sim.seeds 1000, or SEEDS=1000 in the
// environment, runs many.
var (
	simSeed    = flag.Int64("sim.seed", -1, "run only the world of this seed")
	simSeeds   = flag.Int("sim.seeds", 0, "worlds per profile")
	simNodes   = flag.Int("sim.nodes", 0, "directors in each world, at most 14; 0: 2 to 5, by the seed, or what the profile says")
	simProfile = flag.String("sim.profile", "", "run only this profile")
)

var profiles = map[string]faults{
	"lossy":    {drop: 0.1, dup: 0.05, slow: 0.02, skew: time.Millisecond, stalls: true, kills: true, slowNft: true, flush: true, drain: true},
	"calm":     {kills: true, drain: true, moves: true, skew: time.Millisecond},
	"cuts":     {drop: 0.05, dup: 0.05, slow: 0.02, stalls: true, kills: true, cuts: true, drain: true, moves: true},
	"halves":   {cuts: true, halves: true},
	"poison":   {cuts: true, poison: true, kills: true},
	"nft":      {slowNft: true, flush: true, stalls: true, skew: time.Millisecond},
	"master":   {stalls: true, kills: true, drop: 0.2, slow: 0.1, adversary: true, drain: true, skew: time.Millisecond},
	"mcuts":    {stalls: true, kills: true, cuts: true, slow: 0.1, adversary: true},
	"onecut":   {oneCut: true, drop: 0.02, slow: 0.02, adversary: true},
	"hung":     {stalls: true, kills: true, drop: 0.02, skew: time.Millisecond},
	"late":     {adversary: true, slow: 0.6, skew: time.Millisecond},
	"sleepy":   {stalls: true, often: true, kills: true, skew: time.Millisecond},
	"fast":     {fast: true, stalls: true, kills: true, drain: true, slowNft: true, drop: 0.02, skew: time.Millisecond},
	"frozen":   {freeze: true, kills: true, drop: 0.02, slow: 0.02},
	"recorded": {recorded: true, kills: true, drop: 0.02, slow: 0.02, skew: time.Millisecond, stalls: true, drain: true},
	"mixed":    {mixed: true, kills: true, drop: 0.02, slow: 0.02, skew: time.Millisecond, stalls: true, drain: true, moves: true},
	"clone":    {clone: true, kills: true, drop: 0.02, skew: time.Millisecond},
	"planned":  {drain: true, moves: true, steady: true, skew: 9 * time.Millisecond},
	"chosen":   {steady: true, drain: true, moves: true, majority: true, witnesses: 1, skew: 9 * time.Millisecond},
	"majority": {majority: true, witnesses: 2, drop: 0.05, dup: 0.05, slow: 0.02, skew: time.Millisecond, stalls: true, kills: true, cuts: true, drain: true, slowNft: true, flush: true},
	"mmaster":  {majority: true, witnesses: 1, slow: 0.1, stalls: true, kills: true, cuts: true, adversary: true, skew: time.Millisecond},
	"amnesia":  {majority: true, amnesia: true, witnesses: 1, kills: true, adversary: true, skew: time.Millisecond},
	"sixteen":  {nodes: 16, buckets: 64, drop: 0.02, slow: 0.02, skew: time.Millisecond, stalls: true, kills: true, drain: true, moves: true},
	"voters":   {majority: true, witnesses: 1, newVoters: true, kills: true, cuts: true, drop: 0.02, skew: time.Millisecond, drain: true},
}

const (
	troubleEnds = 12 * time.Second
	// calmed is when the last stall, delay and restart have ended.
	calmed = troubleEnds + 3*time.Second
	// healed is how long after that all must be served again.
	healed = 5 * time.Second
	// gapBound is for how long a planned move may leave a bucket without an
	// acceptor of new flows: heartbeat, ack, two transactions, settle.
	gapBound = 40 * time.Millisecond
	// overlapBound is for how long after a split healed both may accept: an
	// interval, until the first heartbeat, and a transaction.
	overlapBound = simInterval + 15*time.Millisecond
)

func simulate(seed uint64, f faults, mut mutant) *world {
	nodes := 2 + int(seed%4)
	if f.oneCut || f.clone || f.recorded {
		nodes = 3 + int(seed%3)
	}
	if f.amnesia {
		nodes = 2 // and a witness: any two are a majority
	}
	nodes = cmp.Or(*simNodes, f.nodes, nodes)
	w := newWorld(seed, nodes, f, mut)
	w.after(1500*time.Millisecond, func() { w.trouble(troubleEnds) })
	w.after(0, w.watch)
	if f.recorded {
		w.after(3*time.Second, func() { w.hauntAll(calmed + healed) })
	}
	if f.adversary {
		w.after(1500*time.Millisecond, func() { w.adversary(troubleEnds, Epoch{}) })
	}
	w.run(calmed + healed)
	if len(w.bad) > 0 {
		return w
	}
	w.alive()
	if f.steady && w.worstGap > gapBound {
		w.fail("a move left a bucket without an acceptor for %v", w.worstGap)
	}
	if f.halves && w.worst > overlapBound {
		w.fail("two accepted for %v after a split healed", w.worst)
	}
	return w
}

// worlds returns the seeds to run.
func worlds(t *testing.T, short int) (first, n uint64) {
	t.Helper()
	if *simSeed >= 0 {
		return uint64(*simSeed), 1
	}
	if *simSeeds > 0 {
		return 0, uint64(*simSeeds)
	}
	if s := os.Getenv("SEEDS"); s != "" {
		n, err := strconv.ParseUint(s, 10, 32)
		if err != nil {
			t.Fatalf("SEEDS=%q is not a number", s)
		}
		return 0, n
	}
	return 0, uint64(short)
}

func TestSimulation(t *testing.T) {
	for name, f := range profiles {
		if *simProfile != "" && *simProfile != name {
			continue
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			exempt, worst, gap := 0, time.Duration(0), time.Duration(0)
			short := 3
			if f.nodes > 0 {
				short = 1 // as much work as all of another profile's
			}
			first, n := worlds(t, short)
			for seed := first; seed < first+n; seed++ {
				w := simulate(seed, f, 0)
				exempt += w.exempt
				worst, gap = max(worst, w.worst), max(gap, w.worstGap)
				if len(w.bad) > 0 {
					t.Fatalf("-sim.profile %s -sim.seed %d: %s\n%s", name, seed, strings.Join(w.bad, "\n"), w.dump())
				}
			}
			t.Logf("%d worlds; %d times two acceptors under a stated exception, at most %v of them while they heard each other; longest gap of a planned move %v", n, exempt, worst, gap)
		})
	}
}

// One seed is one world: without that no failure could be looked at.
func TestSimulationReplays(t *testing.T) {
	for _, p := range []string{"lossy", "mcuts", "majority"} {
		a, b := simulate(5, profiles[p], 0), simulate(5, profiles[p], 0)
		if !slices.Equal(a.trace, b.trace) || a.seq != b.seq {
			t.Errorf("%s: the same seed makes two worlds, of %d and %d events", p, a.seq, b.seq)
		}
	}
}

func TestMutantsAreCaught(t *testing.T) {
	for name, m := range map[string]struct {
		mut      mutant
		profiles []string
	}{
		"no VOID":                          {noVoid, []string{"late"}},
		"no silence after restart":         {noSilence, []string{"amnesia"}},
		"taker does not wait":              {takerDoesNotWait, []string{"lossy", "hung"}},
		"full lease at write":              {fullLeaseAtWrite, []string{"sleepy"}},
		"silence counted while stalled":    {countStalledSilence, []string{"sleepy"}},
		"refused taken for absent":         {refusedIsAbsent, []string{"late"}},
		"release before the commit":        {releaseBeforeCommit, []string{"lossy", "nft"}},
		"ineligible taken for free":        {ineligibleIsFree, []string{"master", "mcuts"}},
		"same epoch, different content":    {sameEpoch, []string{"calm"}},
		"rest before the barrier":          {noBarrier, []string{"planned"}},
		"release without linger":           {noLinger, []string{"planned"}},
		"release without a taker":          {noTaker, []string{"planned"}},
		"both sides of a split keep":       {bothKeep, []string{"halves"}},
		"opened at once after the release": {noSettle, []string{"planned"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for seed := range uint64(60) {
				for _, p := range m.profiles {
					if w := simulate(seed, profiles[p], m.mut); len(w.bad) > 0 {
						t.Logf("caught by %s, seed %d: %s", p, seed, w.bad[0])
						return
					}
				}
			}
			t.Error("the simulation does not see this error")
		})
	}
}
