using BlockServer.Core;
using BlockServer.Tests.Simulated;

namespace BlockServer.Tests.Simulation.Sessions;

// Connections cut at every byte, one after the other.
public sealed partial class SessionSimulation
{
    /// <summary>So many sessions in a row that were not cut any more: the end was reached.</summary>
    private const int WholeMax = 40;

    private long? _cutAt;
    private bool _cutsTarget, _isWalking;

    /// <summary>Runs a short session again and again over one store: the first is cut after one byte that reaches the target
    /// (<paramref name="cutsTarget"/>) or the initiator, the next after two, until it is not cut any more.
    /// <paramref name="isPlain"/>: neither digests nor data that was not asked for. What went wrong, and how many were cut.</summary>
    public static (IReadOnlyList<Violation> Violations, int Cuts) RunWalk(ulong seed, bool cutsTarget, bool isPlain)
    {
        var simulation = new SessionSimulation(seed, new SessionOptions()) { _isWalking = true, _cutsTarget = cutsTarget };
        int cuts = 0;
        try
        {
            cuts = simulation.Walk(isPlain);
        }
        catch (Exception thrown) when (thrown is not OutOfMemoryException)
        {
            simulation.Violate(ViolationKind.Exception, thrown.ToString());
        }

        return (simulation._violations, cuts);
    }

    private int Walk(bool isPlain)
    {
        Loop = new SimLoop(_random.NextUInt64());
        _disk = new Simulated.Disk.SimDisk(Loop, Driver.MediumBytes, _random.NextUInt64());
        if (Loop.Run(Driver.FormatAsync(Loop, _disk, 1)) is { } refusal) Violate(ViolationKind.Refused, refusal);
        var head = new VolumeHead(1, _random.NextGuid(), "v0", Core.Units.MiB, 1);
        _units.Add(new SimUnit(0, 512, new VolumeModel(head) { IsSure = true }));
        RequestsLeft = int.MaxValue;
        if (!TryOpen()) return 0;
        Serve();
        var initiator = new Initiator(this, 0);
        int whole = 0, cuts = 0;
        for (long cut = 1; whole < WholeMax && !IsBroken; cut++)
        {
            _cutAt = cut;
            var keys = new SessionKeys(Dice)
            {
                HeaderDigest = !isPlain, DataDigest = !isPlain, InitialR2T = isPlain, ImmediateData = !isPlain, MaxBurst = 512,
                FirstBurst = 512, MaxReceive = 1024, MaxOutstandingR2T = 2, MaxConnections = 1, HasSecurityStage = cut % 2 == 0,
            };
            Task<bool> walking = initiator.WalkAsync(keys);
            if (!Loop.RunUntil(() => walking.IsCompleted || IsBroken, EventsPerLifeMax) && !IsBroken)
                Violate(ViolationKind.Hang, $"a session that was cut at byte {cut} hangs");
            if (IsBroken) break;
            if (walking.Result) whole++;
            else (whole, cuts) = (0, cuts + 1);
            _sessions.Clear();
            _wires.Clear();
        }

        if (!IsBroken) EndOrderly(cutsPower: false);
        return cuts;
    }
}
