using BlockServer.Protocols.Iscsi;
using BlockServer.Protocols.Iscsi.Scsi;
using Xunit;

namespace BlockServer.Tests.Unit.Iscsi;

/// <summary>The bytes on the wire are these and stay these; every PDU is read as it was written.</summary>
public sealed class PduCodecTests
{
    private static readonly IscsiNumbers Numbers = new(0x01020304, 0x11121314, 0x21222324);

    private delegate void Write(Span<byte> bhs);

    [Fact]
    public void A_command_is_these_bytes()
    {
        var pdu = new ScsiCommandPdu(true, true, false, true, TaskAttribute.Ordered, 0x0001000000000000, 0xA0B0C0D0, 4096, 7, 9);
        Golden(
            bhs => pdu.WriteTo(bhs, [0x2A, 0, 0, 0, 0, 8, 0, 0, 8, 0], 0x010203),
            "41" + "A2" + "0000" // immediate command; F W ordered
            + "00" + "010203" // AHS, data segment
            + "0001000000000000" + "A0B0C0D0" // LUN, tag
            + "00001000" + "00000007" + "00000009" // expected length, CmdSN, ExpStatSN
            + "2A000000000800000800" + "000000000000"); // CDB
        Assert.Equal(pdu, ScsiCommandPdu.Read(Bytes(b => pdu.WriteTo(b, [], 0))));
    }

    [Fact]
    public void Answers_to_commands_are_these_bytes()
    {
        var response = new ScsiResponsePdu(0, ScsiStatus.CheckCondition, 0xA0B0C0D0, Numbers, 3, new Residual(false, 512));
        Golden(
            bhs => response.WriteTo(bhs, 20),
            "21" + "82" + "00" + "02" + "00" + "000014" + "0000000000000000" + "A0B0C0D0" + "00000000"
            + "010203041112131421222324" + "00000003" + "00000000" + "00000200");
        Assert.Equal(response, ScsiResponsePdu.Read(Bytes(b => response.WriteTo(b, 0))));

        var dataIn = new DataInPdu(true, true, ScsiStatus.Good, 5, Numbers, 2, 8192, new Residual(true, 1));
        Golden(
            bhs => dataIn.WriteTo(bhs, 4096),
            "25" + "85" + "00" + "00" + "00" + "001000" + "0000000000000000" + "00000005" + "FFFFFFFF"
            + "010203041112131421222324" + "00000002" + "00002000" + "00000001");
        Assert.Equal(dataIn, DataInPdu.Read(Bytes(b => dataIn.WriteTo(b, 0))));

        var r2t = new R2TPdu(0x0002000000000000, 5, 6, Numbers, 1, 65536, 131072);
        Golden(
            r2t.WriteTo,
            "31" + "80" + "0000" + "00000000" + "0002000000000000" + "00000005" + "00000006"
            + "010203041112131421222324" + "00000001" + "00010000" + "00020000");
        Assert.Equal(r2t, R2TPdu.Read(Bytes(r2t.WriteTo)));
    }

    [Fact]
    public void Login_is_these_bytes()
    {
        var request = new LoginRequestPdu(
            true, false, IscsiStage.Operational, IscsiStage.FullFeature, 0, 0x00023D000001, 0x1122, 3, 4, 5, 6);
        Golden(
            bhs => request.WriteTo(bhs, 300),
            "43" + "87" + "0000" + "00" + "00012C" + "00023D000001" + "1122" + "00000003" + "00040000"
            + "00000005" + "00000006" + "00000000000000000000000000000000");
        Assert.Equal(request, LoginRequestPdu.Read(Bytes(b => request.WriteTo(b, 0))));

        var response = new LoginResponsePdu(
            false, false, IscsiStage.Security, 0, 0x400000000001, 9, 3, Numbers, IscsiLoginStatus.SessionDoesNotExist);
        Golden(
            bhs => response.WriteTo(bhs, 0),
            "23" + "00" + "0000" + "00000000" + "400000000001" + "0009" + "00000003" + "00000000"
            + "010203041112131421222324" + "020A" + "0000" + "0000000000000000");
        Assert.Equal(response, LoginResponsePdu.Read(Bytes(b => response.WriteTo(b, 0))));
    }

    [Fact]
    public void Everything_else_is_these_bytes()
    {
        var task = new TaskManagementRequestPdu(true, TaskFunction.AbortTask, 1UL << 48, 1, 2, 3, 4, 5);
        Golden(
            task.WriteTo,
            "42" + "81" + "0000" + "00000000" + "0001000000000000" + "00000001" + "00000002" + "00000003" + "00000004" + "00000005"
            + "000000000000000000000000");
        Assert.Equal(task, TaskManagementRequestPdu.Read(Bytes(task.WriteTo)));

        var nop = new NopOutPdu(true, 0, 1, IscsiWire.NoTag, 3, 4);
        Golden(
            bhs => nop.WriteTo(bhs, 5),
            "40" + "80" + "0000" + "00" + "000005" + "0000000000000000" + "00000001" + "FFFFFFFF" + "00000003" + "00000004"
            + "00000000000000000000000000000000");
        Assert.Equal(nop, NopOutPdu.Read(Bytes(b => nop.WriteTo(b, 0))));

        var message = new AsyncMessagePdu(IscsiAsyncEvent.ConnectionDropped, 0, 0x0102, 0x0304, 0x0506, Numbers);
        Golden(
            bhs => message.WriteTo(bhs, 0),
            "32" + "80" + "0000" + "00000000" + "0000000000000000" + "FFFFFFFF" + "00000000" + "010203041112131421222324"
            + "02" + "00" + "0102" + "0304" + "0506" + "00000000");
        Assert.Equal(message, AsyncMessagePdu.Read(Bytes(b => message.WriteTo(b, 0))));

        var reject = new RejectPdu(IscsiRejectReason.InvalidField, Numbers);
        Golden(
            reject.WriteTo,
            "3F" + "80" + "09" + "00" + "00" + "000030" + "0000000000000000" + "FFFFFFFF" + "00000000" + "010203041112131421222324"
            + "000000000000000000000000");
        Assert.Equal(reject, RejectPdu.Read(Bytes(reject.WriteTo)));

        var dataOut = new DataOutPdu(true, 1UL << 48, 1, 2, 3, 4, 5);
        Assert.Equal(dataOut, DataOutPdu.Read(Bytes(b => dataOut.WriteTo(b, 0))));
        var logout = new LogoutRequestPdu(true, IscsiLogoutReason.CloseConnection, 1, 2, 3, 4);
        Assert.Equal(logout, LogoutRequestPdu.Read(Bytes(logout.WriteTo)));
        var logoutResponse = new LogoutResponsePdu(IscsiLogoutResponse.CidNotFound, 1, Numbers);
        Assert.Equal(logoutResponse, LogoutResponsePdu.Read(Bytes(logoutResponse.WriteTo)));
        var text = new TextRequestPdu(true, true, false, 1, 2, 3, 4);
        Assert.Equal(text, TextRequestPdu.Read(Bytes(b => text.WriteTo(b, 0))));
        var textResponse = new TextResponsePdu(false, true, 1, 2, Numbers);
        Assert.Equal(textResponse, TextResponsePdu.Read(Bytes(b => textResponse.WriteTo(b, 0))));
        var nopIn = new NopInPdu(1, 2, 3, Numbers);
        Assert.Equal(nopIn, NopInPdu.Read(Bytes(b => nopIn.WriteTo(b, 0))));
        var outcome = new TaskManagementResponsePdu(TaskFunctionResponse.NoLun, 1, Numbers);
        Assert.Equal(outcome, TaskManagementResponsePdu.Read(Bytes(outcome.WriteTo)));
        var snack = new SnackPdu(1, 2, 3, 4);
        Assert.Equal(snack, SnackPdu.Read(Bytes(snack.WriteTo)));
    }

    [Theory]
    [InlineData(512u, 512u, 0, 0u)]
    [InlineData(512u, 500u, 2, 12u)]
    [InlineData(0u, 500u, 4, 500u)]
    public void Residuals_have_a_direction(uint expected, uint actual, int flags, uint bytes)
    {
        Residual residual = Residual.Of(expected, actual);
        Assert.Equal((flags, bytes), (residual.Flags, residual.Bytes));
    }

    private static byte[] Bytes(Write write)
    {
        var bhs = new byte[IscsiWire.BhsSize];
        bhs.AsSpan().Fill(0xEE); // what was there before must not shine through
        write(bhs);
        return bhs;
    }

    private static void Golden(Write write, string hex) => Assert.Equal(hex, Convert.ToHexString(Bytes(write)));
}
