using System.Buffers.Binary;
using BlockServer.Core;

namespace BlockServer.Tests.Simulation.Sessions;

// Persistent reservations. One initiator at a time changes them, so that who holds what is known or known to be unknown.
internal sealed partial class Initiator
{
    private const int Reserve = 1, Release = 2, Clear = 3, Preempt = 4, RegisterAnyway = 6;

    private readonly List<(SimSession Session, SimUnit Unit)> _stuck = [];

    private static ulong Key(SimSession session) => 0x1000 + session.Isid;

    private async Task PlayReservationAsync(SimSession session, SimUnit unit)
    {
        ReservationOracle oracle = unit.Reservations;
        if (oracle.IsPlaying) return;
        oracle.IsPlaying = true;
        bool isKnown = await PlayAsync(session, unit);
        if (isKnown)
        {
            oracle.IsPlaying = false;
            return;
        }

        // The command may still run: nobody else may play before the target has let go of the session.
        _stuck.Add((session, unit));
    }

    /// <summary>False when the outcome of a command is open.</summary>
    private async Task<bool> PlayAsync(SimSession session, SimUnit unit)
    {
        ReservationOracle oracle = unit.Reservations;
        string port = PortOf(session);
        oracle.Registered.Add(port);
        TaskAnswer registered = await ChangeReservationAsync(session, unit, RegisterAnyway, 0, 0, Key(session));
        if (!registered.IsGood) return IsKnown(session, registered, "REGISTER AND IGNORE EXISTING KEY");

        Reservation? current = oracle.Current;
        if (current is { IsFirm: false }) return await ClearAsync(session, unit, current);
        if (current is not null && current.Holder == port) return await EndAsync(session, unit, current);
        int[] types = [1, 3, 5, 6];
        int type = types[_dice.NextBelow(types.Length)];
        if (current is not null) current.EndingFrom = world.Tick();
        var own = new Reservation(port, Key(session), type, world.Tick());
        oracle.Begin(own);
        TaskAnswer answer = current is null
            ? await ChangeReservationAsync(session, unit, Reserve, type, Key(session), 0)
            : await ChangeReservationAsync(session, unit, Preempt, type, Key(session), current.Key);
        if (!answer.IsGood) return IsKnown(session, answer, current is null ? "RESERVE" : "PREEMPT");
        ulong now = world.Tick();
        own.FirmFrom = now;
        if (current is not null)
        {
            current.GoneFrom = now;
            world.Counters[SessionDid.Preemptions]++;
        }

        world.Counters[SessionDid.Reservations]++;
        await world.Loop.DelayAsync(1 + _dice.NextBelow(6_000_000UL));
        if (session.IsDead || _dice.NextChance(0.3)) return true; // it stays, whoever is logged in
        return await EndAsync(session, unit, own);
    }

    private async Task<bool> EndAsync(SimSession session, SimUnit unit, Reservation held)
    {
        if (_dice.NextChance(0.3)) return await ClearAsync(session, unit, held);
        held.EndingFrom = world.Tick();
        TaskAnswer answer = await ChangeReservationAsync(session, unit, Release, held.Type, Key(session), 0);
        if (!answer.IsGood) return IsKnown(session, answer, "RELEASE");
        held.GoneFrom = world.Tick();
        return true;
    }

    private async Task<bool> ClearAsync(SimSession session, SimUnit unit, Reservation held)
    {
        held.EndingFrom = Math.Min(held.EndingFrom, world.Tick());
        TaskAnswer answer = await ChangeReservationAsync(session, unit, Clear, 0, Key(session), 0);
        if (!answer.IsGood) return IsKnown(session, answer, "CLEAR");
        unit.Reservations.Forget(world.Tick());
        return true;
    }

    private bool IsKnown(SimSession session, TaskAnswer answer, string what)
    {
        if (answer.End == TaskEnd.Lost) return false;
        if (answer.End == TaskEnd.Answered && !answer.IsAttention && answer is not { Key: 0x0B, Code: 0x4705 })
            world.Violate(ViolationKind.WrongReservation, $"{PortOf(session)}: {what} was answered {answer}");
        return true;
    }

    private async Task<TaskAnswer> ChangeReservationAsync(SimSession session, SimUnit unit, int action, int type, ulong key, ulong other)
    {
        var cdb = new byte[16];
        (cdb[0], cdb[1], cdb[2], cdb[8]) = (0x5F, (byte)action, (byte)type, 24);
        var list = new byte[24];
        BinaryPrimitives.WriteUInt64BigEndian(list, key);
        BinaryPrimitives.WriteUInt64BigEndian(list.AsSpan(8), other);
        if (action == RegisterAnyway && world.KeepsReservations) list[20] = 1; // APTPL
        ushort[] causes = action is Release or Clear or Preempt ? [0x2A03, 0x2A04, 0x2A05] : [];
        foreach (ushort code in causes)
        {
            unit.Causes.Add(code);
            foreach (SimSession one in world.Sessions) one.Attentions[unit.LunField].Allow(code);
        }

        TaskAnswer answer = await AskAsync(session, unit, cdb, 0, list);
        foreach (ushort code in causes)
        {
            if (answer.End == TaskEnd.Answered) unit.Causes.Remove(code);
        }

        return answer;
    }
}
