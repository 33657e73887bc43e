using System.Diagnostics;
using System.Globalization;
using System.Text.RegularExpressions;

namespace BlockServer.Tests.Interop;

/// <summary>What became of one test of the suite.</summary>
internal enum SuiteVerdict
{
    /// <summary>Every assertion held.</summary>
    Passed,

    /// <summary>The client said that it skips the test, and asserted nothing else.</summary>
    Skipped,

    /// <summary>An assertion did not hold.</summary>
    Failed,

    /// <summary>The client died of a signal, or did not say how it ended.</summary>
    Crashed,

    /// <summary>The client did not end in its time.</summary>
    Hung,
}

/// <summary>One test of the suite on one kind of LUN. <paramref name="Why"/>: what failed first, or why it was skipped; of a pass, why
/// a part of it was.</summary>
internal sealed record SuiteResult(string Kind, string Test, SuiteVerdict Verdict, string Why, TimeSpan Took);

/// <summary>A LUN that one client at a time works on.</summary>
/// <param name="Kind">Tests are dealt out to all lanes of their kind.</param>
/// <param name="Urls">The same LUN at each portal.</param>
internal sealed record SuiteLane(string Kind, string[] Urls);

/// <summary>A test, of a kind of LUN, with the client's leave to destroy (<c>-d</c>) and to sanitize (<c>-S</c>).</summary>
internal sealed record SuiteJob(string Kind, string Test, string[] Leave);

/// <summary>
/// iscsi-test-cu of libiscsi: every test in a process of its own under its own time limit, so that one that crashes, hangs or
/// leaves something behind is known by name. Lanes run side by side; most of the suite's time is sleep.
/// </summary>
internal static partial class IscsiSuite
{
    /// <summary>Sanitize.Reset sleeps for a minute; what else is slow waits for a few seconds.</summary>
    private const int SecondsMax = 150;

    /// <summary>Every test, as FAMILY.TEST.</summary>
    public static IReadOnlyList<string> List() =>
    [
        .. Blockd.Run("iscsi-test-cu", "-l").Split('\n', StringSplitOptions.TrimEntries)
            .Where(line => line.StartsWith("ALL.", StringComparison.Ordinal) && line.Count(c => c == '.') == 2).Select(line => line[4..]),
    ];

    /// <summary>Runs every job on a lane of its kind; the longest begin first.</summary>
    public static IReadOnlyList<SuiteResult> Run(IEnumerable<SuiteJob> jobs, IReadOnlyList<SuiteLane> lanes, string logs)
    {
        var waiting = jobs.GroupBy(j => j.Kind).ToDictionary(
            kind => kind.Key, kind => new Queue<SuiteJob>(kind.OrderBy(j => Rank(j.Test))));
        var results = new List<SuiteResult>();
        Directory.CreateDirectory(logs);
        Thread[] threads =
        [
            .. lanes.Where(lane => waiting.ContainsKey(lane.Kind)).Select(lane => new Thread(() =>
            {
                while (true)
                {
                    SuiteJob? job;
                    lock (results)
                    {
                        if (!waiting[lane.Kind].TryDequeue(out job)) return;
                    }

                    SuiteResult result = RunOne(job, lane.Urls, Path.Combine(logs, $"{job.Kind}-{job.Test}.log"));
                    lock (results) results.Add(result);
                }
            })),
        ];
        Array.ForEach(threads, t => t.Start());
        Array.ForEach(threads, t => t.Join());
        return [.. results.OrderBy(r => r.Kind, StringComparer.Ordinal).ThenBy(r => r.Test, StringComparer.Ordinal)];
    }

    // MultipathIO.CompareAndWrite zeroes 256 blocks and then compares 257 with zeros: it needs a LUN that nobody has written to.
    private static int Rank(string test) => test switch
    {
        "MultipathIO.CompareAndWrite" => 0,
        "Sanitize.Reset" => 1,
        _ => test.StartsWith("Sanitize.", StringComparison.Ordinal) ? 2 : 3,
    };

    /// <summary>How many of each verdict, then each that is no whole pass with its reason, the same reasons together.</summary>
    public static string Report(string kind, IReadOnlyList<SuiteResult> results)
    {
        int Count(SuiteVerdict verdict) => results.Count(r => r.Verdict == verdict);
        var text = new System.Text.StringBuilder();
        text.AppendLine(CultureInfo.InvariantCulture,
            $"{kind}: {results.Count} tests, {Count(SuiteVerdict.Passed)} pass, {Count(SuiteVerdict.Skipped)} skipped, {Count(SuiteVerdict.Failed)} fail, "
            + $"{Count(SuiteVerdict.Crashed)} crash, {Count(SuiteVerdict.Hung)} hang");
        foreach (IGrouping<(SuiteVerdict Verdict, string Why), SuiteResult> same in results.Where(r => r.Why.Length > 0).GroupBy(r => (r.Verdict, r.Why)))
            text.AppendLine(CultureInfo.InvariantCulture, $"  {same.Key.Verdict}{(same.Key.Verdict == SuiteVerdict.Passed ? " in part" : "")}: {same.Key.Why}: {string.Join(", ", same.Select(r => r.Test))}");
        return text.ToString();
    }

    // The shell writes the output into a file: reading pipes of many clients would take a thread of the pool for each.
    private static SuiteResult RunOne(SuiteJob job, string[] urls, string log)
    {
        string command = $"exec timeout -k 5 {SecondsMax} iscsi-test-cu {string.Join(' ', job.Leave)} -f -t ALL.{job.Test} {string.Join(' ', urls)} >{log} 2>&1 </dev/null";
        long began = Stopwatch.GetTimestamp();
        using Process process = Process.Start(new ProcessStartInfo("/bin/sh", ["-c", command]))!;
        process.WaitForExit();
        (SuiteVerdict verdict, string why) = Judge(process.ExitCode, File.ReadAllText(log));
        return new SuiteResult(job.Kind, job.Test, verdict, why, Stopwatch.GetElapsedTime(began));
    }

    private static (SuiteVerdict Verdict, string Why) Judge(int code, string said)
    {
        if (code is 124 or 137) return (SuiteVerdict.Hung, $"did not end within {SecondsMax} s");
        Match summary = Summary().Match(said);
        if (code >= 128 || !summary.Success || summary.Groups["ran"].Value != "1") return (SuiteVerdict.Crashed, $"ended with {code}");
        if (summary.Groups["failed"].Value != "0") return (SuiteVerdict.Failed, Failure().Match(said) is { Success: true } first ? first.Groups[1].Value.Trim() : "unknown");
        if (Skip().Match(said) is not { Success: true } skip) return (SuiteVerdict.Passed, "");
        // CUnit counts the word that it skips as one assertion; where there are more, the rest was tested and held.
        bool isPart = int.Parse(Assertions().Match(said).Groups[1].Value, CultureInfo.InvariantCulture) > 1;
        return (isPart ? SuiteVerdict.Passed : SuiteVerdict.Skipped, skip.Groups[1].Value.Trim());
    }

    // "               tests      1      1      1      0        0": total, ran, passed, failed, inactive
    [GeneratedRegex(@"tests\s+\d+\s+(?<ran>\d+)\s+\d+\s+(?<failed>\d+)\s+\d+")]
    private static partial Regex Summary();

    [GeneratedRegex(@"asserts\s+(\d+)")]
    private static partial Regex Assertions();

    [GeneratedRegex(@"^\s+1\. (.*)$", RegexOptions.Multiline)]
    private static partial Regex Failure();

    [GeneratedRegex(@"\[SKIPPED\]\s*([^\n]*)")]
    private static partial Regex Skip();
}
