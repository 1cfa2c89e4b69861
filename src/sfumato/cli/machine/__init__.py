"""Commands about this machine: doctor, bench, emissions."""
