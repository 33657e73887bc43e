using System.Diagnostics;
using System.Globalization;
using Xunit;

namespace BlockServer.Tests.Interop;

/// <summary>libiscsi's conformance suite over every kind of LUN that a volume can be shown as, through two portals.</summary>
public sealed class IscsiMatrixTests(ITestOutputHelper output)
{
    private const string Prefix = "iqn.2026-11.org.blockserver";
    private const int LanesPerKind = 3;
    private static readonly string[] s_everything = ["-d", "-S"];

    // What the client cannot pass at any target, and why: never counted as ours, but the LUN must live on.
    private static readonly Dictionary<string, string> s_clientFaults = new()
    {
        // It asserts what a callback has set before the callback can have run, then frees a task that is still queued.
        ["iSCSITMF.LUNResetSimpleAsync"] = "asserts on an answer that it has not waited for, and corrupts its own heap",
    };

    // Zero blocks at LBA 2^31+1 and 2^32-1, which are blocks of a disk above 2 TiB: SBC-3 wants GOOD there ("no logical
    // blocks shall be verified; this shall not be considered as an error"), the client wants 05/21/00. Its READ (10) has the guard.
    private static readonly Dictionary<string, string> s_clientFaultsAbove2TiB = new()
    {
        ["Verify10.ZeroBlocks"] = "takes blocks above 2^31 for out of range",
        ["Verify12.ZeroBlocks"] = "takes blocks above 2^31 for out of range",
    };

    // They write without the leave that -d is, and want GOOD, or fail by themselves without it; the others that write ask.
    private static readonly Dictionary<string, string> s_clientFaultsReadOnly = new()
    {
        ["ProutReserve.AccessEA"] = "wants -d to register, and then writes",
        ["ProutReserve.AccessEAAR"] = "wants -d to register, and then writes",
        ["ProutReserve.AccessEARO"] = "wants -d to register, and then writes",
        ["ProutReserve.AccessWE"] = "wants -d to register, and then writes",
        ["ProutReserve.AccessWEAR"] = "wants -d to register, and then writes",
        ["ProutReserve.AccessWERO"] = "wants -d to register, and then writes",
        ["WriteVerify10.Dpo"] = "writes without being allowed to",
        ["WriteVerify12.Dpo"] = "writes without being allowed to",
        ["WriteVerify16.Dpo"] = "writes without being allowed to",
    };

    // What changes no data wants -d all the same; on a read-only LUN that is what may be left to it.
    private static readonly string[] s_harmless = ["ReadOnly.", "Prin", "ProutRegister.", "ProutClear.", "ProutPreempt.", "ProutReserve.Simple", "ProutReserve.Ownership"];

    // Sanitizing 3 TiB means writing 3 TiB.
    private static readonly Kind[] s_kinds =
    [
        new("thin", "64m", [], s_everything, 216),
        new("thick", "64m", ["--thick"], s_everything, 200),
        new("4kn", "64m", ["--block-size", "4096"], s_everything, 211),
        new("3tib", "3t", [], ["-d"], 205),
        new("readonly", "64m", ["--read-only"], [], 109),
        new("removable", "64m", ["--removable"], s_everything, 225),
    ];

    [Fact]
    public void Nothing_of_the_suite_fails_on_any_kind_of_LUN()
    {
        int second = FreePort.Find();
        using var blockd = new Blockd("none", "1m", "--store-size", "3g", "--connections-per-address", "256", "--iscsi", $"127.0.0.1:{second}");
        var pfcli = new Pfcli(blockd);
        var lanes = new List<SuiteLane>();
        foreach (Kind kind in s_kinds)
        {
            for (int i = 0; i < LanesPerKind; i++)
            {
                string volume = $"{kind.Name}{i}";
                pfcli.Run(["create_volume", "-v", volume, "-s", kind.Size, .. kind.Looks]);
                lanes.Add(new SuiteLane(kind.Name, [.. new[] { blockd.IscsiPort, second }.Select(port => $"iscsi://127.0.0.1:{port}/{Prefix}:{volume}/0")]));
            }
        }

        for (int i = 0; pfcli.Run("list_task").Contains("running", StringComparison.Ordinal); i++)
        {
            Assert.True(i < 300, "the thick volumes are not allocated within 30 s");
            Thread.Sleep(100);
        }

        IReadOnlyList<string> tests = IscsiSuite.List();
        Assert.Equal(230, tests.Count);
        IEnumerable<SuiteJob> jobs = s_kinds.SelectMany(kind => tests.Select(
            test => new SuiteJob(kind.Name, test, kind.Leave.Length == 0 && s_harmless.Any(h => test.StartsWith(h, StringComparison.Ordinal)) ? s_everything : kind.Leave)));
        long began = Stopwatch.GetTimestamp();
        IReadOnlyList<SuiteResult> results = IscsiSuite.Run(jobs, lanes, Path.Combine(blockd.Directory, "suite"));
        string report = $"{Stopwatch.GetElapsedTime(began).TotalSeconds.ToString("F0", CultureInfo.InvariantCulture)} s\n"
            + string.Concat(s_kinds.Select(kind => IscsiSuite.Report(kind.Name, [.. results.Where(r => r.Kind == kind.Name)])));
        File.WriteAllText(Path.Combine(Blockd.Root, "out", "iscsi-matrix.txt"), report);
        output.WriteLine(report);

        // Whatever its clients did to it, every LUN still answers.
        foreach (SuiteLane lane in lanes) Assert.Contains("DIRECT_ACCESS", Blockd.Run("iscsi-inq", lane.Urls[0]), StringComparison.Ordinal);
        SuiteResult[] bad = [.. results.Where(r => r.Verdict is not (SuiteVerdict.Passed or SuiteVerdict.Skipped) && !IsClientsFault(r))];
        Assert.True(bad.Length == 0, string.Join('\n', bad.Select(r => $"{r.Kind} {r.Test}: {r.Verdict}, {r.Why}")));
        foreach (Kind kind in s_kinds)
        {
            int passed = results.Count(r => r.Kind == kind.Name && r.Verdict == SuiteVerdict.Passed);
            Assert.True(passed >= kind.PassedMin, $"on {kind.Name} {passed} tests pass, {kind.PassedMin} did");
        }

        Assert.Equal(0, blockd.Stop());
    }

    /// <summary>The same suite on tgt, for the table in docs/scsi.md: <c>-explicit only -method '*Tgt*'</c>. Needs root and tgt.</summary>
    [Fact(Explicit = true)]
    public void Tgt_on_the_same_machine()
    {
        using var tgt = new Tgt(LanesPerKind, 64 << 20);
        SuiteLane[] lanes = [.. Enumerable.Range(1, LanesPerKind).Select(i => new SuiteLane("tgt", tgt.Urls(i)))];
        IReadOnlyList<SuiteResult> results = IscsiSuite.Run(
            IscsiSuite.List().Select(test => new SuiteJob("tgt", test, s_everything)), lanes, Path.Combine(tgt.Directory, "suite"));
        string report = IscsiSuite.Report("tgt", results);
        File.WriteAllText(Path.Combine(Blockd.Root, "out", "iscsi-matrix-tgt.txt"), report);
        output.WriteLine(report);
    }

    private static bool IsClientsFault(SuiteResult result) =>
        s_clientFaults.ContainsKey(result.Test) || (result.Kind == "3tib" && s_clientFaultsAbove2TiB.ContainsKey(result.Test))
        || (result.Kind == "readonly" && s_clientFaultsReadOnly.ContainsKey(result.Test));

    /// <summary>A kind of LUN: how pfcli makes it, what the client may do to it, and how many tests passed when it was last looked at.</summary>
    private sealed record Kind(string Name, string Size, string[] Looks, string[] Leave, int PassedMin);
}
