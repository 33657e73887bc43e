using System.Diagnostics;
using System.Globalization;
using System.Text.RegularExpressions;
using Xunit;

namespace BlockServer.Tests.Interop;

/// <summary>The Debian package, built once.</summary>
public sealed class BuiltPackage : IDisposable
{
    private readonly string _folder = Directory.CreateTempSubdirectory("blockd-package-").FullName;

    /// <summary>Builds it, unless <c>$BLOCKSERVER_PACKAGE</c> names one to try.</summary>
    public BuiltPackage() =>
        Path = Environment.GetEnvironmentVariable("BLOCKSERVER_PACKAGE") is { Length: > 0 } built ? built : Build(Blockd.Root, "first", "1");

    /// <summary>The package file.</summary>
    public string Path { get; }

    /// <summary>Its later revision, of the same programs.</summary>
    public string Upgrade()
    {
        string unpacked = System.IO.Path.Combine(_folder, "upgrade"), package = System.IO.Path.Combine(_folder, "blockd_upgrade.deb");
        CleanDebian.Root("dpkg-deb", "-R", Path, unpacked);
        CleanDebian.Root("sed", "-i", "s/^\\(Version: .*\\)-1$/\\1-2/", System.IO.Path.Combine(unpacked, "DEBIAN", "control"));
        CleanDebian.Root("dpkg-deb", "-Zgzip", "-z1", "--build", unpacked, package);
        return package;
    }

    /// <summary>Builds it from the tree at <paramref name="root"/>; the package file.</summary>
    public string Build(string root, string name, string revision)
    {
        string output = System.IO.Path.Combine(_folder, name);
        var start = new ProcessStartInfo(
            System.IO.Path.Combine(root, "deploy", "build-deb.sh"), ["--quick", "--revision", revision, "--output", output])
        {
            RedirectStandardOutput = true, RedirectStandardError = true,
        };
        using var process = Process.Start(start)!;
        Task<string> said = process.StandardOutput.ReadToEndAsync(), complaints = process.StandardError.ReadToEndAsync();
        if (!process.WaitForExit(TimeSpan.FromMinutes(10))) process.Kill(entireProcessTree: true);
        Assert.True(process.ExitCode == 0, $"build-deb.sh ended with {process.ExitCode}:\n{said.Result}{complaints.Result}");
        return said.Result.Trim();
    }

    /// <inheritdoc/>
    public void Dispose() => CleanDebian.Root("rm", "-rf", _folder);
}

/// <summary>The Debian package as its user meets it: on a Debian 12 with nothing on it.</summary>
public sealed partial class PackageTests(BuiltPackage package) : IClassFixture<BuiltPackage>
{
    private const string Settings = """
        { "data-dir": "/var/lib/blockd", "store-size": "256m", "create-volume": ["demo:64m"], "iscsi": "none",
          "nbd": ["127.0.0.1:NBD"], "api": ["127.0.0.1:API"] }
        """;

    // What drives the disk when no service manager forbids anything.
    private const string PlainEngine = """
        blockd --data-dir /tmp/plain --store-size 80m --nbd none --iscsi none --api none >/tmp/said & pid=$!
        until grep -qs '^ready' /tmp/said || ! kill -0 $pid; do sleep 0.1; done
        kill $pid; wait $pid; sed -n 's/^blockd .*, \(engine [a-z_]*\),.*/\1/p' /tmp/said
        """;

    [Fact]
    public void It_serves_where_nothing_was_before_and_neither_remove_nor_purge_touches_data()
    {
        using var debian = new CleanDebian();
        string said = debian.Install(package.Path);
        Assert.Contains("systemctl enable --now blockd", said, StringComparison.Ordinal);
        Assert.Matches(@"^\d+\.\d+\.\d+\s*$", debian.Run("blockd", "--version"));
        Assert.Contains("verify", debian.Run("pfinspect", "--help"), StringComparison.Ordinal);
        Assert.Equal("blockd:blockd 700\n", debian.Run("stat", "-c", "%U:%G %a", "/var/lib/blockd"));
        Assert.Equal("root:blockd 750\n", debian.Run("stat", "-c", "%U:%G %a", "/etc/blockd"));
        Assert.Equal("", debian.Run("ls", "-A", "/var/lib/blockd")); // nothing was started

        int port = FreePort.Find(), api = FreePort.Find();
        string uri = $"nbd://127.0.0.1:{port}/demo";
        debian.Write("/etc/blockd/blockd.json", Settings
            .Replace("NBD", port.ToString(CultureInfo.InvariantCulture), StringComparison.Ordinal)
            .Replace("API", api.ToString(CultureInfo.InvariantCulture), StringComparison.Ordinal));
        using (Process daemon = Start(debian))
        {
            Assert.Equal("67108864\n", Blockd.Run("nbdinfo", "--size", uri));
            Blockd.Run("qemu-io", "-f", "raw", "-c", "write -P 0x5a 1m 64k", "-c", "flush", uri);
            // The token of the service is found without being named.
            Assert.Contains("demo", debian.Run("pfcli", "--server", $"http://127.0.0.1:{api}", "list_volume"), StringComparison.Ordinal);
            Stop(daemon);
        }

        string before = Data(debian);
        debian.Apt("remove", "blockd");
        Assert.NotEqual(0, debian.Try("sh", "-c", "command -v blockd").Code);
        Assert.Equal(before, Data(debian));
        Assert.Contains("store-size", debian.Run("cat", "/etc/blockd/blockd.json"), StringComparison.Ordinal);
        string settings = debian.Run("cat", "/etc/blockd/blockd.json");
        said = debian.Apt("purge", "blockd");
        Assert.Contains("stay in /var/lib/blockd", said, StringComparison.Ordinal);
        Assert.Equal(before, Data(debian));
        Assert.NotEqual(0, debian.Try("test", "-e", "/etc/blockd").Code);
        Assert.NotEqual(0, debian.Try("test", "-e", "/usr/lib/blockd").Code);

        debian.Install(package.Path);
        debian.Write("/etc/blockd/blockd.json", settings);
        using (Process daemon = Start(debian))
        {
            Blockd.Run("qemu-io", "-f", "raw", "-r", "-c", "read -P 0x5a 1m 64k", uri);
            Stop(daemon);
        }
    }

    [Fact]
    public void Under_systemd_it_runs_hardened_and_restarts_upgrades_and_is_started_by_its_socket()
    {
        using var debian = new CleanDebian();
        debian.Apt("install", "systemd");
        debian.Install(package.Path);
        debian.Boot();
        Assert.Equal("", debian.Run("systemd-analyze", "verify", "--man=no", "blockd.service", "blockd.socket"));
        Match exposure = Exposure().Match(debian.Run("systemd-analyze", "security", "--no-pager", "--offline=true", "/lib/systemd/system/blockd.service"));
        Assert.True(double.Parse(exposure.Groups[1].Value, CultureInfo.InvariantCulture) <= 1.5, exposure.Value);
        Assert.Equal("inactive disabled", $"{debian.Try("systemctl", "is-active", "blockd").Output.Trim()} {debian.Try("systemctl", "is-enabled", "blockd").Output.Trim()}");

        // Started: what systemctl waits for is READY=1. The default addresses are free on a network of its own.
        debian.Write("/etc/blockd/blockd.json", """{ "data-dir": "/var/lib/blockd", "store-size": "256m", "create-volume": ["demo:64m"] }""");
        debian.Run("systemctl", "enable", "--now", "blockd");
        string plain = debian.Run("sh", "-c", PlainEngine);
        Assert.Contains(plain.Trim(), debian.Run("journalctl", "-u", "blockd", "--no-pager"), StringComparison.Ordinal); // the filter takes no engine away
        string status = debian.Run("sh", "-c", "cat /proc/$(systemctl show -P MainPID blockd)/status");
        Assert.Matches(@"(?m)^NoNewPrivs:\s+1$", status);
        Assert.Matches(@"(?m)^Seccomp:\s+2$", status);
        Assert.Matches(@"(?m)^CapBnd:\s+0+$", status);
        Assert.DoesNotMatch(@"(?m)^Uid:\s+0\s", status);
        const string Uri = "nbd://127.0.0.1:10809/demo";
        debian.Beside("qemu-io", "-f", "raw", "-c", "write -P 0x5a 1m 64k", "-c", "flush", Uri);
        Assert.Contains("demo", debian.Run("pfcli", "list_volume"), StringComparison.Ordinal);
        debian.Run("pfcli", "create_snapshot", "-v", "demo", "-n", "first");
        debian.Run("pfcli", "export_image", "-v", "demo", "-n", "first", "-o", "/tmp/demo.stream"); // liblz4 loads under the filter

        // Killed, it comes back by itself.
        string first = Pid(debian);
        debian.Run("systemctl", "kill", "--signal=KILL", "--kill-whom=main", "blockd");
        debian.Run("timeout", "60", "sh", "-c", "until systemctl -q is-active blockd && [ \"$(systemctl show -P MainPID blockd)\" != " + first + " ]; do sleep 0.1; done");
        debian.Beside("qemu-io", "-f", "raw", "-r", "-c", "read -P 0x5a 1m 64k", Uri);

        // Upgraded, it runs again, also where it was only started and not enabled.
        debian.Run("systemctl", "disable", "blockd");
        string second = Pid(debian);
        debian.Install(package.Upgrade());
        Assert.Equal("active", debian.Run("systemctl", "is-active", "blockd").Trim());
        Assert.NotEqual(second, Pid(debian));
        debian.Beside("qemu-io", "-f", "raw", "-r", "-c", "read -P 0x5a 1m 64k", Uri);

        // Started by the first client of its socket, here by the one that is for the group.
        debian.Run("systemctl", "stop", "blockd");
        debian.Run("systemctl", "start", "blockd.socket");
        Assert.Equal("blockd:blockd 660\n", debian.Run("stat", "-c", "%U:%G %a", "/run/blockd/nbd.sock"));
        Assert.Equal("67108864\n", Blockd.Run("nbdinfo", "--size", $"nbd+unix:///demo?socket={debian.Live("/run/blockd/nbd.sock")}"));
        debian.Beside("qemu-io", "-f", "raw", "-r", "-c", "read -P 0x5a 1m 64k", Uri);
        debian.Run("systemctl", "start", "blockd"); // waits for READY=1, which may come after the first client is served
        debian.Run("systemctl", "stop", "blockd.socket", "blockd.service");

        // Wrong settings are no reason to try again and again.
        debian.Write("/etc/blockd/blockd.json", """{ "store-sise": "256m" }""");
        Assert.NotEqual(0, debian.Try("systemctl", "start", "blockd").Code);
        string[] state = debian.Run("systemctl", "show", "-p", "ActiveState", "-p", "NRestarts", "-p", "ExecMainStatus", "blockd").Split('\n');
        Assert.Equal(["ActiveState=failed", "ExecMainStatus=2", "NRestarts=0"], state.Where(l => l.Length > 0).Order(StringComparer.Ordinal));
        Assert.Contains("did you mean store-size?", debian.Run("journalctl", "-u", "blockd", "--no-pager"), StringComparison.Ordinal);

        // Removed while it runs, it is stopped first.
        debian.Write("/etc/blockd/blockd.json", """{ "data-dir": "/var/lib/blockd" }""");
        debian.Run("systemctl", "enable", "--now", "blockd");
        debian.Apt("purge", "blockd");
        Assert.Equal("", debian.Try("sh", "-c", "ls /proc/*/exe -l 2>/dev/null | grep /usr/lib/blockd").Output);
        Assert.NotEqual(0, debian.Try("test", "-e", "/etc/systemd/system/multi-user.target.wants/blockd.service").Code);
        Assert.Contains("store-0.blk", debian.Run("ls", "/var/lib/blockd"), StringComparison.Ordinal);
    }

    [Fact]
    public void It_has_what_it_should_and_lintian_finds_no_error()
    {
        string[] files = [.. Blockd.Run("dpkg-deb", "-c", package.Path).Split('\n', StringSplitOptions.RemoveEmptyEntries)];
        Assert.All(files, f => Assert.Contains(" root/root ", f, StringComparison.Ordinal));
        foreach (string file in (string[])
            ["./usr/lib/blockd/blockd", "./usr/lib/blockd/pfcli", "./usr/lib/blockd/pfinspect", "./usr/bin/pfcli", "./usr/sbin/blockd -> ",
             "./usr/sbin/pfinspect -> ", "./lib/systemd/system/blockd.service", "./lib/systemd/system/blockd.socket", "./usr/lib/sysusers.d/blockd.conf",
             "./usr/lib/tmpfiles.d/blockd.conf", "./etc/blockd/blockd.json", "./usr/share/man/man8/blockd.8.gz", "./usr/share/man/man1/pfcli.1.gz",
             "./usr/share/man/man8/pfinspect.8.gz", "./usr/share/doc/blockd/operating.md", "./usr/share/doc/blockd/copyright"])
            Assert.Contains(files, f => f.Contains(' ' + file, StringComparison.Ordinal));

        (int code, string output) = Blockd.Try("lintian", "--allow-root", "--fail-on", "error", package.Path);
        Assert.True(code == 0, output);

        // A manual page knows every option and every command.
        string folder = Directory.CreateTempSubdirectory("blockd-package-").FullName;
        try
        {
            Blockd.Run("dpkg-deb", "-x", package.Path, folder);
            foreach ((string program, string page) in (ReadOnlySpan<(string, string)>)[("blockd", "man8/blockd.8"), ("pfcli", "man1/pfcli.1"), ("pfinspect", "man8/pfinspect.8")])
            {
                string manual = Blockd.Run("gzip", "-dc", Path.Combine(folder, "usr/share/man", page + ".gz")).Replace("\\-", "-", StringComparison.Ordinal);
                foreach (Match term in Term().Matches(Blockd.Run(Path.Combine(folder, "usr/lib/blockd", program), "--help")))
                    Assert.Contains($".B {term.Groups[1].Value}", manual, StringComparison.Ordinal);
            }
        }
        finally
        {
            Directory.Delete(folder, recursive: true);
        }
    }

    // Two whole builds: for a release, not for every run.
    [Fact(Explicit = true)]
    public void Built_twice_in_different_places_it_has_the_same_bytes()
    {
        string folder = Directory.CreateTempSubdirectory("blockd-elsewhere-").FullName;
        try
        {
            Blockd.Run("git", "-c", "safe.directory=*", "clone", "-q", Blockd.Root, Path.Combine(folder, "one"));
            Blockd.Run("git", "clone", "-q", Path.Combine(folder, "one"), Path.Combine(folder, "the other one"));
            Blockd.Run("cmp", package.Build(Path.Combine(folder, "one"), "a", "1"), package.Build(Path.Combine(folder, "the other one"), "b", "1"));
        }
        finally
        {
            Directory.Delete(folder, recursive: true);
        }
    }

    private static Process Start(CleanDebian debian)
    {
        Process daemon = debian.Begin("/usr/sbin/blockd", "--config", "/etc/blockd/blockd.json");
        while (daemon.StandardOutput.ReadLine() is { } line)
        {
            if (line == "ready") return daemon;
        }

        Assert.Fail("blockd did not become ready");
        return daemon;
    }

    private static void Stop(Process daemon)
    {
        CleanDebian.Root("kill", "-TERM", daemon.Id.ToString(CultureInfo.InvariantCulture));
        Assert.True(daemon.WaitForExit(60_000), "blockd did not stop");
        Assert.Equal(0, daemon.ExitCode);
    }

    private static string Pid(CleanDebian debian) => debian.Run("systemctl", "show", "-P", "MainPID", "blockd").Trim();

    // Every file of the data directory with its owner and its sum.
    private static string Data(CleanDebian debian) =>
        debian.Run("sh", "-c", "cd /var/lib/blockd && find . | sort | xargs stat -c '%n %U:%G %a' && find . -type f | sort | xargs sha256sum");

    [GeneratedRegex(@"Overall exposure level for blockd\.service: ([0-9.]+)")]
    private static partial Regex Exposure();

    // "  --nbd <ADDRESS>   Where ..." and "  add_lun   Makes ...": what an option or a command is called.
    [GeneratedRegex(@"(?m)^  (\S+(?: \S+)*?)  +\S")]
    private static partial Regex Term();
}
