"""Our engines and presets beside other programs on this machine: `sfumato bench`."""
