using Xunit;

namespace BlockServer.Tests.Simulation.Sessions;

/// <summary>Seeds of <see cref="SessionSimulation"/>. <see cref="Settings.SessionSeeds"/> says how many.</summary>
public sealed class SessionSimulationTests(ITestOutputHelper output)
{
    /// <summary>Each broken build, and what it may look like.</summary>
    public static TheoryData<SessionBreakage, ViolationKind[]> Breakages => new()
    {
        // What is acknowledged too early may also land behind a later write of its place.
        { SessionBreakage.AckBeforeStore, [ViolationKind.LostWrite, ViolationKind.StaleRead, ViolationKind.Leak, ViolationKind.ExecutedTwice, ViolationKind.WrongData] },
        { SessionBreakage.FlushForgotten, [ViolationKind.LostWrite] },
        { SessionBreakage.AbortAnsweredEarly, [ViolationKind.StaleRead, ViolationKind.AnswerAfterAbort, ViolationKind.WrongData] },
        { SessionBreakage.AbortedAnswered, [ViolationKind.AnswerAfterAbort, ViolationKind.LostWrite, ViolationKind.StaleRead, ViolationKind.WrongAnswer, ViolationKind.WrongMap] },
        { SessionBreakage.AbortsOvertakeAnswers, [ViolationKind.AnswerAfterAbort] },
        { SessionBreakage.DataSnUnchecked, [ViolationKind.WrongAnswer] },
        { SessionBreakage.DigestsUnchecked, [ViolationKind.WrongData, ViolationKind.WrongProtocol, ViolationKind.Hang, ViolationKind.WrongAnswer] },
        { SessionBreakage.RepetitionsTaken, [ViolationKind.ExecutedTwice, ViolationKind.WrongProtocol, ViolationKind.StaleRead] },
        { SessionBreakage.ReinstatedAtOnce, [ViolationKind.StaleRead, ViolationKind.ExecutedTwice, ViolationKind.WrongData, ViolationKind.WrongReservation] },
        { SessionBreakage.ReservationsForgotten, [ViolationKind.WrongReservation] },
        { SessionBreakage.ReservationsIgnored, [ViolationKind.WrongReservation] },
        { SessionBreakage.AttentionsSwallowed, [ViolationKind.WrongAttention] },
    };

    /// <summary>Every seed runs twice: nothing may depend on anything but the seed. With the default seeds every kind of
    /// session must have been there, every fault must have happened and every promise must have been judged.</summary>
    [Fact]
    public void Every_seed_gives_the_same_events_twice_and_no_violation()
    {
        SeedSweep<SessionCounters> sweep = SessionSimulation.Sweep(1, (ulong)Settings.SessionSeeds, new SessionOptions(), twice: true, keepGoing: true);
        output.WriteLine($"{sweep.Runs} seeds: {sweep.Counters}");
        Assert.True(sweep.Failures.Count == 0, string.Join('\n', sweep.Failures));
        if (Settings.SessionSeeds >= Settings.SessionSeedsDefault) Assert.Empty(sweep.Counters.Missing);
    }

    /// <summary>One session, cut one byte later each time, both ways: whatever was acknowledged stays, whatever was under way
    /// has happened or not when the next login is answered, and at the end nothing is kept.</summary>
    [Fact]
    public void A_session_may_be_cut_at_every_byte()
    {
        (bool CutsTarget, bool IsPlain)[] ways = [(true, false), (true, true), (false, false), (false, true)];
        var done = new (IReadOnlyList<Violation> Violations, int Cuts)[ways.Length];
        Parallel.For(0, ways.Length, i => done[i] = SessionSimulation.RunWalk(5, ways[i].CutsTarget, ways[i].IsPlain));
        foreach ((IReadOnlyList<Violation> violations, int cuts) in done)
        {
            output.WriteLine($"{cuts} cuts");
            Assert.True(violations.Count == 0, string.Join('\n', violations));
            Assert.InRange(cuts, 1_500, 20_000);
        }
    }

    /// <summary>Trust in the tests (trust C.6): what is broken on purpose is found, by a symptom that it explains, in a world
    /// in which the same seed finds nothing wrong with the product.</summary>
    [Theory]
    [MemberData(nameof(Breakages))]
    public void A_broken_build_is_noticed_by_its_symptom(SessionBreakage breakage, ViolationKind[] symptoms)
    {
        var options = new SessionOptions { Breakage = breakage };
        SeedSweep<SessionCounters> sweep = SessionSimulation.Sweep(1, (ulong)Settings.BrokenSeeds, options, twice: false, keepGoing: false);
        Assert.True(sweep.First is not null, $"{breakage} was not found in {Settings.BrokenSeeds} seeds");
        (ulong seed, Violation found) = sweep.First.Value;
        output.WriteLine($"{breakage}, {sweep.Runs} seeds: {found}");
        Assert.True(symptoms.Contains(found.Kind), $"not a symptom of {breakage}: {found}");
        SeedResult<SessionCounters> honest = SessionSimulation.Run(seed, new SessionOptions());
        Assert.True(honest.Violations.Count == 0, string.Join('\n', honest.Violations));
    }
}
