package lab_test

import (
	"os"
	"testing"
	"time"

	"saru/test/lab"
	"saru/test/lab/guest"
)

// TestInGuest runs this package's tests on a kernel with IPVS. The variable
// SARU_LAB_KERNELS chooses others than 6.1, separated by commas.
func TestInGuest(t *testing.T) {
	if lab.HasIPVS() {
		t.Skip("this kernel has IPVS itself")
	}
	if testing.Short() {
		t.Skip("boots a guest, which takes a minute")
	}
	if err := lab.Root(); err != nil {
		t.Skip(err)
	}
	for _, kernel := range guest.TestKernels() {
		t.Run(kernel, func(t *testing.T) {
			c := guest.Config{Kernel: kernel, Timeout: 10 * time.Minute, Stdout: os.Stderr}
			guest.Test(t, c, "saru/test/lab", "-test.short")
		})
	}
}
