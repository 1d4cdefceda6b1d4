package membership

// A mutant is a deliberate error in the protocol. The simulation must catch
// each; outside tests it is 0.
type mutant uint

const (
	noVoid              mutant = 1 << iota // grants of earlier heartbeats open what was given up since
	noSilence                              // a restarted voter grants at once
	takerDoesNotWait                       // promises and silence end long before the lease
	watchFromSending                       // a voter counts from when it sent what the holder answers
	countStalledSilence                    // silence is counted while the daemon itself slept
	refusedIsAbsent                        // a refusal counts like no answer
	releaseBeforeCommit                    // buckets are released when the close is asked, not when read back
	ineligibleIsFree                       // what a director that is not ready claims is free
	sameEpoch                              // a master gives a new content to an epoch that it has issued
	noBarrier                              // a taker does not wait for the connections
	noTaker                                // a giver releases before the taker has rest
	noLinger                               // a giver drops established flows with the new ones
	bothKeep                               // after a split both sides keep what they have
	noSettle                               // a taker opens at once
	closeEarly                             // a short stall closes the share
	noProof                                // a director that is too slow takes part again at once
	lateResets                             // a late tick begins all counts of silence anew
	believesRecordings                     // heartbeats from before a restart count
)
